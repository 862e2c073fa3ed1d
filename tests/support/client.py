"""A client of its own process: asks for one digit again and again, at a rate.

Arguments: address, key, requests a second, how many it may keep in flight. It sends a request again
that got 429, as callers of a managed endpoint have to. It writes a line for each request:
seconds since the epoch at which it was asked, status, model version, digit, how often it got 429;
ends when its input is closed.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np

url, key, rate, limit = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
place = urlsplit(url)
image = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)[3]
body = json.dumps({"data": [image.tolist()]})
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
over = threading.Event()
PAUSE_SECONDS = 0.05  # before a request is sent again


def listen() -> None:
    """Wait for the end of the input."""
    sys.stdin.read()
    over.set()


def ask() -> None:
    """Ask until told to end."""
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    following = time.monotonic()
    while not over.is_set():
        asked = time.time()
        try:
            status = busy = 0
            while status in (0, 429):
                connection.request("POST", place.path, body, headers)
                answer = connection.getresponse()
                told, status = answer.read(), answer.status
                if status == 429:
                    busy += 1
                    time.sleep(PAUSE_SECONDS)
            line = [asked, status, "", told.decode()[:100], busy]
            if answer.status == 200:
                found = json.loads(told)
                line[2:4] = [found["model_version"], found["predictions"][0]["digit"]]
        except (OSError, http.client.HTTPException, ValueError) as error:
            line = [asked, 0, "", repr(error), busy]
            connection.close()
        print(json.dumps(line) + "\n", end="", flush=True)  # in one piece, whatever others write
        following += limit / rate
        over.wait(max(0.0, following - time.monotonic()))


threading.Thread(target=listen, daemon=True).start()
threads = [threading.Thread(target=ask) for _ in range(limit)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
