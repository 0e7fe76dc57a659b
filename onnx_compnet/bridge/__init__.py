"""From ONNX to a trainable torch module and back: the only package that imports onnx2torch."""
