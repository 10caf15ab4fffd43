target_link_libraries(scoreprior_data PRIVATE ${SP_ERFA})
# Its pixel loops vectorise only when sqrt need not set errno and comparisons need not trap: twice as fast.
set_source_files_properties(${PROJECT_SOURCE_DIR}/scoreprior/data/blackhole.cpp PROPERTIES
  COMPILE_OPTIONS "-fno-math-errno;-fno-trapping-math")
# g++ 12 mistakes the strings of a derived options struct, moved from a function's default argument, for uninitialised.
target_compile_options(scoreprior_data PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
