"""Running a tritonserver on a model repository: here, in a container, a rank per GPU."""
