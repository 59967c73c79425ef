"""A stand-in for vLLM: an HTTP server that behaves on the wire as vLLM 0.32 does, without a model or a GPU.

It exists so that everything around an engine (router, deployments, cost meter, load tests, chaos tests) can be
proved on one machine. What it copies was seen on a real vLLM or read in its sources; what it cannot copy is
the sense of the words. Text is a pure function of the token ids before it, so a stream that was cut can be
continued on another engine and compared, id by id, with one that was not.

Start one with `python -m tuna_nb.backends.local.engine --model NAME --port 8000`. It is spawned for every
local container and replica, so it imports only the standard library, httptools and uvloop.
"""
