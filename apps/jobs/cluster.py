"""django-q2's settings. Nothing here may import Django: the settings module reads it.

The queue is the Job table, so nothing is stored twice: results are not kept (`save_limit`) and deliveries are not retried by the
broker (leases are ours). What goes through django-q2's queue are turns; as many wait there as there are workers, so that
a worker whose turn is over has the next at once.
"""

WORKERS = 2
CLUSTER: dict[str, object] = {
    "name": "byteor",
    "broker_class": "apps.jobs.broker.JobTableBroker",
    "workers": WORKERS,
    "bulk": 1,
    "queue_limit": WORKERS,
    "recycle": 5000,
    "max_rss": 512 * 1024,
    "timeout": 900,
    "retry": 3600,
    "save_limit": -1,
    "max_attempts": 1,
    "ack_failures": True,
    "catch_up": False,
    "scheduler": False,
    "cache": "default",
}
