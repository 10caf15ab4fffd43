# Installs the build into a scratch prefix, then configures, builds and runs examples against it.
set(prefix ${BUILD}/consumer/prefix)
set(work ${BUILD}/consumer/build)
set(custom ${BUILD}/consumer/custom)
file(REMOVE_RECURSE ${prefix} ${work} ${custom})
function(step)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${ARGN}\n${out}")
  endif()
  set(last "${out}" PARENT_SCOPE)
endfunction()
function(expect text)
  if(NOT last MATCHES "${text}")
    message(FATAL_ERROR "expected ${text}, got: ${last}")
  endif()
endfunction()
step(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
step(${CMAKE_COMMAND} -S ${SOURCE}/examples/consumer -B ${work} -G ${GENERATOR} -DCMAKE_PREFIX_PATH=${prefix})
step(${CMAKE_COMMAND} --build ${work})
step(${work}/consumer)
expect("log p = -")
message("${last}")

# A forward model outside the tree: the contract kit, then the program that knows it.
step(${CMAKE_COMMAND} -S ${SOURCE}/examples/02_custom_forward -B ${custom} -G ${GENERATOR}
     -DCMAKE_PREFIX_PATH=${prefix})
step(${CMAKE_COMMAND} --build ${custom})
step(${custom}/contract)
expect("PASSED")
file(WRITE ${custom}/mine.toml [[
[truth]
name = "blackhole"
image_size = 16
[forward]
name = "row_means"
gain = 2.0
[likelihood]
sigma = 0.1
[data]
file = "data/observation.npz"
[image]
size = 16
[prior]
name = "tv"
[infer]
name = "map"
steps = 10
]])
step(${custom}/imager simulate ${custom}/mine.toml --out ${custom}/data --quiet)
if(NOT EXISTS ${custom}/data/observation.npz)
  message(FATAL_ERROR "the custom model was not simulated: ${last}")
endif()
step(${custom}/imager check ${custom}/mine.toml --quiet)
expect("row_means +\\[16\\] +linear")
expect("dot test, float64")
expect(", 0 failed")
message("custom forward model: contract kept, simulated, checked")
