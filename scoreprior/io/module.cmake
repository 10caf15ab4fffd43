target_link_libraries(scoreprior_io PRIVATE tomlplusplus::tomlplusplus PNG::PNG ZLIB::ZLIB
  TIFF::TIFF pugixml::pugixml PkgConfig::cfitsio PkgConfig::netcdf PkgConfig::libzip
  PkgConfig::hdf5 PkgConfig::matio PUBLIC nlohmann_json::nlohmann_json)
