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
elimination     blocks of columns taken from G and C, or from (G + ρI)⁻¹ and W2, one after the other
selection       orders of the neurons: backward, forward, by contribution
widths          the error of every width on a path, fitted and held-out
problems        a site's readers as least-squares problems; K and c of Algorithm 3 from moments
pool            the candidates that vary; the Selection
paths           one selection of a path: by width, by the error that is allowed, by a cap
algorithm3      Algorithm 3: a lasso on what each neuron adds to y
algorithms      all methods by name; Algorithms 1 and 2 and the random baseline
==============  ==========================================================================================

Results are frozen dataclasses and stay on the device of the inputs; sums are float64.
"""
