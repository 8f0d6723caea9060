"""The ACE-Step v1 model and the loop that runs it, in a plain Python process.

Nothing here imports Ray, FastAPI or pydantic. `acestep_engine.params`, `acestep_engine.errors` and
`acestep_engine.audio` do not import torch either, so that an ingress process stays small.
"""
