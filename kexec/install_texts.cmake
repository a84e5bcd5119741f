# Run by `cmake --install`: units and hooks, with the paths of the prefix that is installed into.
# In: holdfast_source, CMAKE_INSTALL_{PREFIX,BINDIR,LIBEXECDIR,DOCDIR}.
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_PREFIX NORMALIZE OUTPUT_VARIABLE prefix)
foreach(folder BINDIR LIBEXECDIR DOCDIR)
  cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_${folder} BASE_DIRECTORY "${prefix}" NORMALIZE
    OUTPUT_VARIABLE CMAKE_INSTALL_FULL_${folder})
endforeach()

# systemd looks into PREFIX/lib whatever the library folder is called.
foreach(unit holdfastd holdfast-restore)
  set(installed "$ENV{DESTDIR}${prefix}/lib/systemd/system/${unit}.service")
  configure_file("${holdfast_source}/systemd/${unit}.service.in" "${installed}" @ONLY)
  message(STATUS "Installed: ${installed}")
endforeach()

foreach(hook pre-kexec post-boot)
  file(READ "${holdfast_source}/hooks/${hook}" text)
  string(REPLACE "{HOLDFAST:-holdfast}" "{HOLDFAST:-${CMAKE_INSTALL_FULL_BINDIR}/holdfast}" text
    "${text}")
  set(installed "$ENV{DESTDIR}${CMAKE_INSTALL_FULL_LIBEXECDIR}/holdfast/${hook}")
  file(WRITE "${installed}" "${text}")
  file(CHMOD "${installed}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE
    GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
  message(STATUS "Installed: ${installed}")
endforeach()
