"""``python -m onnx_compnet`` is the command ``onnx-compnet``."""

import sys

from onnx_compnet_cli.main import main

sys.exit(main())
