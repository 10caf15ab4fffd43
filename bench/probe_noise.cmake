add_executable(probe_noise ${CMAKE_CURRENT_SOURCE_DIR}/probe_noise.cpp)
target_link_libraries(probe_noise PRIVATE scoreprior_data scoreprior_infer scoreprior_likelihood
                      scoreprior_priors scoreprior_warnings)
