"""Settings of Django and django-wiki. What differs between machines comes from the environment."""

import os

SECRET_KEY = os.environ["SECRET_KEY"]
DEBUG = False
# The ingress passes on requests for its own domains only, and health checks use the pod's address.
ALLOWED_HOSTS = ["*"]
CSRF_TRUSTED_ORIGINS = [f"https://{os.environ.get('DOMAIN', 'localhost')}"]
SITE_ID = 1
ROOT_URLCONF = "project.urls"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.sites",
    "django.contrib.staticfiles",
    "django_nyt",
    "mptt",
    "sekizai",
    "sorl.thumbnail",
    "wiki",
    "wiki.plugins.attachments",
    "wiki.plugins.images",
    "wiki.plugins.macros",
    "wiki.plugins.notifications",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.contrib.auth.context_processors.auth",
                "django.template.context_processors.debug",
                "django.template.context_processors.i18n",
                "django.template.context_processors.media",
                "django.template.context_processors.request",
                "django.template.context_processors.static",
                "django.template.context_processors.tz",
                "django.contrib.messages.context_processors.messages",
                "sekizai.context_processors.sekizai",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("PGHOST"),
        "PORT": os.environ.get("PGPORT"),
        "NAME": os.environ.get("PGDATABASE"),
        "USER": os.environ.get("PGUSER"),
        "PASSWORD": os.environ.get("PGPASSWORD"),
    }
}
STATIC_URL = "/static/"
STATIC_ROOT = "/app/static"
MEDIA_URL = "/media/"
MEDIA_ROOT = "/data/media"
LOGGING = {
    "version": 1,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}

# Everybody may read, write and upload, which suits a rehearsal. Remove these lines to have users and permissions.
WIKI_ANONYMOUS_WRITE = True
WIKI_ANONYMOUS_UPLOAD = True
WIKI_REVISIONS_PER_MINUTES_ANONYMOUS = 10_000
WIKI_REVISIONS_PER_HOUR_ANONYMOUS = 100_000
WIKI_ATTACHMENTS_EXTENSIONS = ["txt", "pdf", "jpg", "png"]
WIKI_ATTACHMENTS_PATH = "attachments/%aid/"
