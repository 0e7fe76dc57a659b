"""The mathematics: tensors in, tensors out; no ONNX, no files, no choice of device.

==============  ==========================================================================================
activations     h(x) as onnxruntime computes it; h(0) and h'(0)
initialise      candidate weights W1: He, Glorot, Kumar
rows            the new layer's forward pass; a tensor cut into rows u under a reader's geometry
moments         n, means and co-moments of (u, y) and of x: accumulate, merge, subset
similarity      R, Eq. 7
ridge           W2 and b2, Eq. 11, and the error of a fit on any moments
iilasso         the independently interpretable lasso, Eqs. 6 and 8-10; its path; its cap
descent         its coordinate descent
problems        a site's readers as least-squares problems; K and c of Algorithm 3 from moments
pool            the candidates that vary; the Selection
algorithms      Algorithms 1-3 and the random baseline: moments to the neurons that stay, and their W2
==============  ==========================================================================================

Results are frozen dataclasses and stay on the device of the inputs; sums are float64.
"""
