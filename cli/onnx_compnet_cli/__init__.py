"""The command ``onnx-compnet``: parses, calls one function, prints, maps errors to exit codes."""
