"""Quantized chains as ONNX graphs with QuantizeLinear and DequantizeLinear; needs the optional package ``onnx``."""
