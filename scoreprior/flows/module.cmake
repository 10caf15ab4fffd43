# sqrt and log1p inline: nothing here reads errno.
target_compile_options(scoreprior_flows PRIVATE -fno-math-errno)
