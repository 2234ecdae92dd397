"""One settings module for four profiles (local, development, staging, production); see `byteor.config`."""

from pathlib import Path
from urllib.parse import urlsplit

import environ

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
BYTEOR_API_BASE_URL = CONFIG.api_origin + CONFIG.api_prefix
BYTEOR_UI_BASE_URL = CONFIG.ui_origin
BYTEOR_STORAGE_URL = CONFIG.storage_url
BYTEOR_KEY_ENCRYPTION_KEYS = CONFIG.key_encryption_keys
BYTEOR_AUDIT_MAC_KEYS = CONFIG.derived_keys("audit-chain-head")
BYTEOR_MODE = CONFIG.mode
BYTEOR_RUN_DEMO_AGENTS = CONFIG.run_demo_agents
BYTEOR_METRICS_TOKEN = CONFIG.metrics_token
BYTEOR_API_BIND = CONFIG.api_bind
BYTEOR_API_BIND_ORIGIN = _config.http_origin(*CONFIG.api_bind)
BYTEOR_WORKER_BIND = CONFIG.worker_bind
BYTEOR_TRUSTED_PROXIES = CONFIG.trusted_proxies
BYTEOR_HEARTBEAT_SECONDS = 10
BYTEOR_HEARTBEAT_CACHE = CONFIG.heartbeat_cache
BYTEOR_JOB_LEASE_SECONDS = CONFIG.job_lease_seconds
BYTEOR_JOB_WORKERS = _config.JOB_WORKERS
BYTEOR_MAX_BODY_BYTES = 4 * 1024 * 1024

BYTEOR_SENDS_MAIL = CONFIG.sends_mail
globals().update(CONFIG.email)

SECRET_KEY, *SECRET_KEY_FALLBACKS = CONFIG.secret_keys
DEBUG = False
_UI_HOST = urlsplit(CONFIG.ui_origin).hostname or "localhost"
_API_HOST = urlsplit(CONFIG.api_origin).hostname or "localhost"
ALLOWED_HOSTS = sorted(
    {
        f"[{host}]" if ":" in host else host
        for host in (_UI_HOST, _API_HOST, *(() if CONFIG.hosted else ("127.0.0.1", "localhost", "::1")))
    }
)

_APPS = [
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
    *(f"apps.{app}" for app in _APPS),
]
MIDDLEWARE = [
    "byteor.middleware.requests.RequestIdMiddleware",
    "byteor.middleware.requests.BodyLimitMiddleware",
    "byteor.middleware.requests.HostRulesMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "byteor.middleware.requests.ApiHttpsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "byteor.middleware.requests.ContentSecurityPolicyMiddleware",
    "byteor.middleware.failed_authentication.FailedAuthMiddleware",
    "byteor.middleware.browsers.SessionMiddleware",
    "byteor.middleware.requests.CommonMiddleware",
    "byteor.middleware.requests.HiddenCharactersMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "byteor.middleware.requests.NulMiddleware",
    "byteor.middleware.browsers.AuthenticationMiddleware",
    "byteor.middleware.browsers.MessageMiddleware",
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
    if CONFIG.database_schema:
        _options = f"{_database['OPTIONS'].get('options', '')} -c search_path={CONFIG.database_schema}"
        _database["OPTIONS"]["options"] = _options.strip()
    if CONFIG.database_direct_url:
        # behind a pooler no server-side state may outlast a transaction
        _database["OPTIONS"]["prepare_threshold"] = None
        _database["DISABLE_SERVER_SIDE_CURSORS"] = True
    else:
        # a statement that a connection has run twice is prepared: PostgreSQL need not parse it again
        _database["OPTIONS"] |= {"server_side_binding": True, "prepare_threshold": 2}
BYTEOR_DATABASE_DIRECT_URL = CONFIG.database_direct_url
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

if CONFIG.redis_url:
    _shared = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": CONFIG.redis_url,
        "KEY_PREFIX": "byteor",
        # short timeouts: a request does not wait for an unavailable cache
        "OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 1},
    }
else:
    _shared = {"BACKEND": "apps.limits.cache.SqliteCache", "LOCATION": str(BYTEOR_DATA_DIR / "limits.sqlite3")}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}, "limits": _shared}
RATELIMIT_USE_CACHE = "limits"
# both caches count atomically; the library checks a fixed list of backends
SILENCED_SYSTEM_CHECKS = ["django_ratelimit.E003", "django_ratelimit.W001"]

AUTH_USER_MODEL = "access.User"
AUTHENTICATION_BACKENDS = ["apps.access.backends.PeopleBackend"]
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
CSRF_FAILURE_VIEW = "apps.api.problems.csrf_failure"
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
# where https is required, API paths are refused instead of redirected (ApiHttpsMiddleware), and probes are allowed
SECURE_REDIRECT_EXEMPT = [r"^(healthz|readyz|metrics)$", r"^(api|v1)(/|$)"]
if CONFIG.hosted:
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-sessionid", "__Host-csrftoken"
    SECURE_SSL_REDIRECT = True
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
    "EXCEPTION_HANDLER": "apps.api.problems.exception_handler",
    "DEFAULT_AUTHENTICATION_CLASSES": ["apps.api.authentication.people.PersonAuthentication"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["apps.api.parsers.StrictJSONParser", "apps.api.parsers.MergePatchParser"],
    "UNAUTHENTICATED_USER": None,
}

LOGGING = _logs.configure()

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
FORMAT_MODULE_PATH = ["byteor.formats"]
STATIC_URL = "/static/"
STATIC_ROOT = BYTEOR_DATA_DIR / "static"
if not CONFIG.hosted:
    STATIC_ROOT.mkdir(parents=True, exist_ok=True)
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = not CONFIG.hosted
DATA_UPLOAD_MAX_MEMORY_SIZE = BYTEOR_MAX_BODY_BYTES + 1
# the queue is the Job table (apps/jobs/broker.py): results are not kept, deliveries are not repeated by django-q2, and as many
# claimed jobs as there are workers wait in its queue at most
Q_CLUSTER = {
    "name": "byteor",
    "broker_class": "apps.jobs.broker.JobTableBroker",
    "workers": BYTEOR_JOB_WORKERS,
    "bulk": BYTEOR_JOB_WORKERS,
    "queue_limit": BYTEOR_JOB_WORKERS,
    "recycle": 5000,
    "max_rss": 512 * 1024,
    "timeout": 900,
    "retry": 3600,
    "save_limit": -1,
    "max_attempts": 1,
    "ack_failures": True,
    "catch_up": False,
    "cache": "default",
}
