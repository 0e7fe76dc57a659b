"""The ONNX side: reading, understanding and editing models. No torch, no onnxruntime, no data."""
