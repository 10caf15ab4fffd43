target_link_libraries(scoreprior_data PRIVATE ${SP_ERFA})
