"""The project around django-wiki: settings and addresses."""
