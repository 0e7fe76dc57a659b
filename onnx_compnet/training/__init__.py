"""Fine-tuning a grown model: ONNX → torch → training → the same ONNX graph with other weights.

    options.py → samples.py, losses.py, parameters.py → loop.py → finetune.py → result.py

Whatever is drawn (order of samples, augmentation, dropout) is a function of the seed, the epoch and the step alone
(chance.py), so that an interrupted run goes on from a checkpoint to the same bits, and several processes
(parallel.py) take the same steps as one.
"""
