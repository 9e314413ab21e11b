"""Gaussian-process factorization of context-aware ratings: GPFM, GPLVMF and what they are compared with.

A room of its own: ratings are few, and every user is a Gaussian process over shared latent vectors, so nothing here
goes through embedding tables or the pace machine.

    covariance, exact, psi, bound    mathematics: tensors in, tensors out
    ratings, splitting, users        rating data: files, parts, padded blocks of users
    models, gpfm, gplvmf, fm         what is learned
    fitting, checkpoints, story      how it is learned, kept and told
"""
