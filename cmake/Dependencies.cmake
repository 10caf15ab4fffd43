# Debian packages only; a newer libtorch is taken from CMAKE_PREFIX_PATH.
find_package(PkgConfig REQUIRED)
find_package(Torch REQUIRED)
find_package(tomlplusplus REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PNG REQUIRED)
find_package(TIFF REQUIRED)
find_package(ZLIB REQUIRED)
find_package(pugixml REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
pkg_check_modules(cfitsio REQUIRED IMPORTED_TARGET cfitsio)
pkg_check_modules(netcdf REQUIRED IMPORTED_TARGET netcdf)
pkg_check_modules(libzip REQUIRED IMPORTED_TARGET libzip)
pkg_check_modules(hdf5 REQUIRED IMPORTED_TARGET hdf5)
pkg_check_modules(matio REQUIRED IMPORTED_TARGET matio)
find_library(SP_ERFA erfa REQUIRED)

add_library(scoreprior_flags INTERFACE)
target_compile_features(scoreprior_flags INTERFACE cxx_std_${CMAKE_CXX_STANDARD})
target_include_directories(scoreprior_flags INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(scoreprior_flags INTERFACE ${TORCH_LIBRARIES} OpenMP::OpenMP_CXX)
if(SP_SANITIZE)
  target_compile_options(scoreprior_flags INTERFACE -fsanitize=${SP_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(scoreprior_flags INTERFACE -fsanitize=${SP_SANITIZE})
endif()

# g++ 12 vectorises pairs of double -> float -> double conversions away, so rounded values keep their double digits.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(scoreprior_flags INTERFACE -fno-tree-slp-vectorize)
endif()

add_library(scoreprior_warnings INTERFACE)
target_compile_options(scoreprior_warnings INTERFACE
  -Wall -Wextra -Wno-unused-parameter -Wno-psabi $<$<BOOL:${SP_WERROR}>:-Werror>)
