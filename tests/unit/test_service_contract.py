"""The check of an image: how an answer is judged. Running one is in tests/lab/test_service_images.py."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from minipc.cli import service as cli
from minipc.config.service import Service
from minipc.core.errors import MissingPrerequisiteError
from minipc.images import prerequisites
from minipc.services import contract, images


@pytest.mark.parametrize(
    ("answer", "outcome", "why"),
    [
        ({"status": 200, "location": ""}, "passed", ""),
        ({"status": 301, "location": "/ok/"}, "failed", "it redirects (301) to /ok/; give the path that answers"),
        ({"status": 503, "location": ""}, "failed", "it answers 503"),
        ({"problem": "TimeoutError: timed out"}, "failed", "TimeoutError: timed out"),
        ({"refused": True}, "failed", "no answer"),
    ],
)
def test_only_200_is_an_answer(answer, outcome, why):
    found = contract._judge("ready", "/ok", answer)
    assert (found.name, found.outcome, found.why) == ("The path /ok (health.ready) answers 200", outcome, why)


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Runs `minipc service check shop`, with what checking its image yields."""
    (tmp_path / "shop.yaml").write_text("image: example.org/shop\nprocesses: {web: {}}\n")
    monkeypatch.setattr(cli, "group_data", lambda environment: {"services_folders": [str(tmp_path)]})

    def run(found: object):
        def check_image(settings, service: Service, image):
            if isinstance(found, Exception):
                raise found
            yield from found

        image = images.Missing("shop", "no image was added") if found is None else object()
        monkeypatch.setattr(images, "ensure", lambda service: image)
        monkeypatch.setattr(contract, "check_image", check_image)
        return CliRunner().invoke(cli.service, ["check", "shop", "--inventory", "lab"])

    return run


def test_a_failed_check_fails(checked):
    result = checked([contract.Check("It listens", "passed"), contract.Check("It answers", "failed", "it answers 500")])
    assert result.exit_code == 1
    assert "It answers: it answers 500" in result.output


def test_all_passed(checked):
    assert checked([contract.Check("It listens", "passed")]).exit_code == 0


@pytest.mark.parametrize("found", [None, MissingPrerequisiteError("running a container needs root", "")])
def test_an_image_that_was_not_run_is_not_exercised(checked, found):
    result = checked(found)
    assert result.exit_code == 4
    assert "NOT EXERCISED: the image: " in result.output


def test_who_may_not_run_containers_is_told(monkeypatch):
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)
    with pytest.raises(MissingPrerequisiteError, match="needs root"):
        prerequisites.ensure_container_runtime()
