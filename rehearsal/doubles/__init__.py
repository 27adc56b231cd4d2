"""Test doubles: servers that replace services which the lab cannot reach."""
