"""Running models and moving data; no algorithms. Never imports graph or numerics.

    select → Session                                       device.py, session.py
    open_data → Source → split | everything → Batches      sources.py, split.py, batches.py
    capture(session, batches) → (Batch, named tensors)     capture.py

A Source knows where samples are (files.py and npz.py, memory.py, feeds.py), how they lie in their arrays
(layout.py) and how they become what the model takes (prepare.py, options.py).
"""
