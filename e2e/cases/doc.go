// Package cases holds the stories that Keelson must be able to tell: what a user does
// with a cluster, with the real binaries and the real kubectl, on a lab cluster of two
// machines. One file per story; `make e2e` runs them, `make e2e E2EFLAGS='-run Healing'`
// some of them.
//
// KEELSON_BIN names the binaries under test (make build fills bin/); where several labs
// share a host, KEELSON_LAB_PREFIX and KEELSON_LAB_SUBNET keep them apart. The cluster is
// started once; each story works in a namespace of its own and can run alone. Every wait
// is for a state, has a limit, and prints what it last saw. When a story fails the
// machines' logs are copied to e2e/logs, and its namespace's pods and events are printed.
package cases
