# `find_package(scoreprior)` gives scoreprior::pipeline and every module below it, and scoreprior::cli.
include(CMakePackageConfigHelpers)
get_property(modules GLOBAL PROPERTY SP_MODULES)
set(targets scoreprior_flags scoreprior_cli)
foreach(module ${modules})
  list(APPEND targets scoreprior_${module})
endforeach()
install(TARGETS ${targets} EXPORT scorepriorTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS scoreprior RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY scoreprior apps DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING
        PATTERN "*.h" PATTERN "*.def" PATTERN detail EXCLUDE)
install(DIRECTORY testing/scoreprior DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY models configs DESTINATION ${CMAKE_INSTALL_DATADIR}/scoreprior)
install(EXPORT scorepriorTargets NAMESPACE scoreprior::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/scoreprior)
configure_package_config_file(cmake/scorepriorConfig.cmake.in scorepriorConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/scoreprior)
write_basic_package_version_file(scorepriorConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/scorepriorConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/scorepriorConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/scoreprior)
