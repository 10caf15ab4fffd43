add_executable(gaussian_study ${CMAKE_CURRENT_SOURCE_DIR}/gaussian_study.cpp)
target_link_libraries(gaussian_study PRIVATE scoreprior_data scoreprior_infer scoreprior_likelihood
                      scoreprior_priors scoreprior_warnings)
