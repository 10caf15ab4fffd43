target_link_libraries(scoreprior_io PRIVATE tomlplusplus::tomlplusplus PNG::PNG
  PkgConfig::cfitsio PkgConfig::netcdf PkgConfig::libzip PUBLIC nlohmann_json::nlohmann_json)
