"""One settings module for four profiles (local, development, staging, production); see `byteor.config`."""

from pathlib import Path
from urllib.parse import urlsplit

import environ

from apps.jobs.cluster import CLUSTER
from byteor import config as _config
from byteor import logs as _logs

try:
    CONFIG = _config.load()
except _config.BadSetting as _error:
    _config.refuse(_error)

BASE_DIR = _config.ROOT
BYTEOR_PROFILE = CONFIG.profile
BYTEOR_HOSTED = CONFIG.hosted
BYTEOR_DATA_DIR: Path = CONFIG.data_dir
BYTEOR_API_PREFIX = CONFIG.api_prefix
BYTEOR_API_BASE_URL = CONFIG.api_origin + CONFIG.api_prefix
BYTEOR_UI_BASE_URL = CONFIG.ui_origin
BYTEOR_STORAGE_URL = CONFIG.storage_url
BYTEOR_REDIS_URL = CONFIG.redis_url or None
BYTEOR_KEY_ENCRYPTION_KEYS = CONFIG.key_encryption_keys
BYTEOR_AUDIT_MAC_KEYS = CONFIG.derived_keys("audit-chain-head")
BYTEOR_MODE = CONFIG.mode
BYTEOR_RUN_DEMO_AGENTS = CONFIG.run_demo_agents
BYTEOR_METRICS_TOKEN = CONFIG.metrics_token
BYTEOR_API_BIND = CONFIG.api_bind
BYTEOR_WORKER_BIND = CONFIG.worker_bind
BYTEOR_HEARTBEAT_SECONDS = 10
BYTEOR_WEB_THREADS = 8
BYTEOR_JOB_LEASE_SECONDS = CONFIG.job_lease_seconds
BYTEOR_MAX_BODY_BYTES = 4 * 1024 * 1024

SECRET_KEY = CONFIG.secret_key
DEBUG = False
_UI_HOST = urlsplit(CONFIG.ui_origin).hostname or "localhost"
_API_HOST = urlsplit(CONFIG.api_origin).hostname or "localhost"
ALLOWED_HOSTS = sorted({_UI_HOST, _API_HOST}) if CONFIG.hosted else ["127.0.0.1", "localhost", "[::1]", "testserver"]

_ROOMS = [
    "core", "audit", "tenancy", "access", "jobs", "limits", "blobs", "signing",
    "approvals", "agents", "pipelines", "deployments", "console",
]  # fmt: skip
INSTALLED_APPS = [
    "apps.console.apps.ConsoleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_q",
    *(f"apps.{room}" for room in _ROOMS),
]
MIDDLEWARE = [
    "apps.core.middleware.RequestIdMiddleware",
    "apps.core.middleware.BodyLimitMiddleware",
    "apps.core.middleware.HostRulesMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "apps.core.middleware.ContentPolicyMiddleware",
    "apps.limits.middleware.FailedAuthMiddleware",
    "apps.access.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "apps.access.middleware.AuthenticationMiddleware",
    "apps.access.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "byteor.urls"
WSGI_APPLICATION = "byteor.wsgi.application"
APPEND_SLASH = False
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

_database = environ.Env.db_url_config(CONFIG.database_url)
if _database["ENGINE"].endswith("sqlite3"):
    _database |= {
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
        "TEST": {"NAME": str(BYTEOR_DATA_DIR / "test.sqlite3")},
    }
else:
    _database |= {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
    _database["OPTIONS"] = {**_database.get("OPTIONS", {}), "connect_timeout": 5}
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

if CONFIG.redis_url:
    _shared = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": CONFIG.redis_url,
        "KEY_PREFIX": "byteor",
        # one that does not answer is away: a request does not wait for it
        "OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 1},
    }
else:
    _shared = {"BACKEND": "apps.limits.cache.SqliteCache", "LOCATION": str(BYTEOR_DATA_DIR / "limits.sqlite3")}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}, "limits": _shared}
RATELIMIT_USE_CACHE = "limits"
# both caches count atomically; the library knows its own list of backends only
SILENCED_SYSTEM_CHECKS = ["django_ratelimit.E003", "django_ratelimit.W001"]

AUTH_USER_MODEL = "access.User"
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "/"

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "apps.core.problems.csrf_failure"
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
if CONFIG.hosted:
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-sessionid", "__Host-csrftoken"
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^(healthz|readyz|metrics)$"]
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = True
    CSRF_TRUSTED_ORIGINS = [CONFIG.ui_origin]

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}

REST_FRAMEWORK = {
    "EXCEPTION_HANDLER": "apps.core.api.exception_handler",
    "DEFAULT_AUTHENTICATION_CLASSES": ["apps.access.authentication.PersonAuthentication"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["apps.core.parsers.StrictJSONParser", "apps.core.parsers.MergePatchParser"],
    "UNAUTHENTICATED_USER": None,
}

LOGGING = _logs.configure()

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
STATIC_URL = "/static/"
STATIC_ROOT = BYTEOR_DATA_DIR / "static"
if not CONFIG.hosted:
    STATIC_ROOT.mkdir(parents=True, exist_ok=True)
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = not CONFIG.hosted
DATA_UPLOAD_MAX_MEMORY_SIZE = BYTEOR_MAX_BODY_BYTES + 1
Q_CLUSTER = CLUSTER
