"""How gunicorn serves the example; it reads this file by itself when started in this directory.

The environment decides what differs between machines:
    BIND             host:port, or unix:/path/to/socket
    WEB_CONCURRENCY  worker processes (gunicorn's own name for it)
    THREADS          threads in each worker
"""

import os

wsgi_app = "app:app"
bind = os.environ.get("BIND", "127.0.0.1:5000")

worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))
threads = int(os.environ.get("THREADS", "16"))

# The workers share the request log and the guestbook through a file that they inherit,
# so the application has to be loaded before they are forked.
preload_app = True

# A proxy keeps idle connections for its next miss. The side that may close one under a
# request just sent should be the proxy, which knows what it is about to send; so wait longer.
keepalive = 75

# A restart should not hang on a download that somebody left running.
graceful_timeout = 5

loglevel = "warning"

# Nobody asks this gunicorn for its status; its socket would lie in the home directory.
control_socket_disable = True
