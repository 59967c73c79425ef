"""Resume: a completion stream that broke is continued on another backend, and its client sees one stream.

What is generated so far is recorded (`recorder`), understood when the stream breaks (`spoken`), turned into the
request for the rest (`plan`, `bodies`), and the rest is told in the terms of the first stream (`splice`). With
vLLM's token ids, which are asked for on the way out (`ask`) and hidden on the way back (`hide`), the rest of a
greedy answer is exact. All of it is pure: bytes in, bytes out.
"""
