"""Run Django's and the wiki's migrations, and create the wiki's first page. Can be repeated."""

import django
from django.core.management import call_command

if __name__ == "__main__":
    django.setup()
    call_command("migrate", interactive=False)

    from django.contrib.sites.models import Site
    from wiki.models import URLPath

    if not URLPath.objects.filter(parent=None).exists():
        URLPath.create_root(site=Site.objects.get_current(), title="Wiki", content="The first page.")
