"""django-q2's settings. Nothing here may import Django: the settings module reads it.

The queue is the Job table, so nothing is stored twice: results are not kept (`save_limit`), deliveries are not
retried by the broker (leases are ours), and a process holds no more claimed jobs than it has workers.
"""

WORKERS = 2
CLUSTER: dict[str, object] = {
    "name": "byteor",
    "broker_class": "apps.jobs.broker.JobTableBroker",
    "workers": WORKERS,
    "bulk": 1,
    "queue_limit": WORKERS,
    "recycle": 5000,
    "timeout": 900,
    "retry": 3600,
    "save_limit": -1,
    "max_attempts": 1,
    "ack_failures": True,
    "catch_up": False,
    "scheduler": False,
    "cache": "default",
}
