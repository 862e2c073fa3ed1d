"""A client of its own process: asks for one digit again and again, as fast as it is told to.

Arguments: address, key, requests a second. It writes a line for each answer: seconds since the
epoch at which it was asked, status, model version, digit; ends when its input is closed.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np

url, key, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
place = urlsplit(url)
image = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)[3]
body = json.dumps({"data": [image.tolist()]})
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
over = threading.Event()
THREADS = 4


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
            connection.request("POST", place.path, body, headers)
            answer = connection.getresponse()
            told = answer.read()
            line = [asked, answer.status, "", told.decode()[:100]]
            if answer.status == 200:
                found = json.loads(told)
                line[2:] = [found["model_version"], found["predictions"][0]["digit"]]
        except (OSError, http.client.HTTPException, ValueError) as error:
            line = [asked, 0, "", repr(error)]
            connection.close()
        sys.stdout.write(json.dumps(line) + "\n")
        following += THREADS / rate
        over.wait(max(0.0, following - time.monotonic()))


threading.Thread(target=listen, daemon=True).start()
threads = [threading.Thread(target=ask) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
