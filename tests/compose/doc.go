// Package compose brings docker-compose.yml up as a user would, and takes it apart. No image is pulled: ours is built by the Dockerfile,
// and under the names of public images stand-ins are imported that hold the same programs, built from source or from the distribution
// (images_test.go). Two are not: Jaeger is a collector of our own that reads Jaeger's configuration, and Grafana does not run; its files are held to
// what they must say (observe_test.go). The rest is real: the engine, the compose file, networks, volumes, limits.
//
// make compose-test sets KVSTORE_COMPOSE and runs it. It needs an engine that answers, or root and Debian's docker.io to start one.
package compose
