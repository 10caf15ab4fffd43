# sqrt without errno lets the optimiser's sweep vectorise; its own unit keeps the flags to itself.
set_source_files_properties(${PROJECT_SOURCE_DIR}/scoreprior/diffusion/optimizer.cpp PROPERTIES
  COMPILE_OPTIONS "-fno-math-errno;-fno-trapping-math" SKIP_UNITY_BUILD_INCLUSION ON)
