# The optimiser's loops vectorise only where sqrt may not touch errno.
target_compile_options(scoreprior_infer PRIVATE -fno-math-errno -fno-trapping-math)
