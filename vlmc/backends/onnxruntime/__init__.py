"""onnxruntime, on its CPU provider."""
