// Package cni is the plugin by which the runtime connects a pod to the node's bridge:
// the pod's pair of interfaces, its address, its route, and by a helper its host ports.
//
// Starting a program is the dear part of a plugin's work, more so on a virtual machine.
// The usual chain starts three for every pod (bridge, host-local, portmap), when it comes
// and twice when it goes; this is one, which starts portmap only for a pod with host
// ports. What the three promise is kept:
//
//   - addresses are booked in host-local's own files and format, so that this plugin and
//     the chain can follow one another on a node, whoever made its pods;
//   - a crash at any line is mended by the next call for the pod: DEL undoes what is
//     there and finds nothing wrong with what is not, ADD replaces what an earlier try left.
//
// Main call: Run, with what the CNI specification passes to a program. Files: addresses.go
// (which address), link.go (the kernel's part), ports.go (host ports).
//
// Debugging: what is booked stands in /var/lib/cni/networks/NAME, one file an address; by
// hand: CNI_COMMAND=ADD CNI_CONTAINERID=x CNI_NETNS=/run/netns/x CNI_IFNAME=eth0
// CNI_PATH=/usr/lib/cni keelson-net < CONFIG.
//
// Source: the CNI specification 0.4.0 and 1.0.0 (verbs, results, error codes).
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
)

// Config is what the configuration file says, and what the runtime adds to it.
type Config struct {
	CNIVersion string         `json:"cniVersion"`
	Name       string         `json:"name"`
	Bridge     string         `json:"bridge"`
	MTU        int            `json:"mtu"`
	Ranges     []netip.Prefix `json:"ranges"`            // of the node's pods, at most one of each family
	DataDir    string         `json:"dataDir,omitempty"` // of the bookings; default /var/lib/cni/networks
	Runtime    struct {
		PortMappings json.RawMessage `json:"portMappings,omitempty"`
	} `json:"runtimeConfig"`
	Previous json.RawMessage `json:"prevResult,omitempty"`
}

// Call is the pod's side of it, from the environment.
type Call struct {
	Verb, Container, Namespace, Interface string
	Path                                  []string // where other plugins are
}

// versions that are spoken.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0"}

// Fault is an error as the specification wants it said.
type Fault struct {
	Version string `json:"cniVersion"`
	Code    int    `json:"code"`
	Message string `json:"msg"`
	Details string `json:"details,omitempty"`
}

func (f *Fault) Error() string {
	if f.Details == "" {
		return f.Message
	}
	return f.Message + ": " + f.Details
}

// Codes of the specification; from 100 on they are the plugin's own.
const (
	codeEnvironment = 4
	codeDecoding    = 6
	codeConfig      = 7
	codeFailed      = 100
)

// Result is the answer to ADD.
type Result struct {
	Version    string      `json:"cniVersion"`
	Interfaces []Interface `json:"interfaces"`
	IPs        []IP        `json:"ips"`
	Routes     []Route     `json:"routes"`
	DNS        struct{}    `json:"dns"`
}

// Interface is one that was made; Sandbox is empty on the node's side.
type Interface struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
}

// IP is one of the pod's addresses. Family is said up to version 0.4.0 only.
type IP struct {
	Family    string       `json:"version,omitempty"`
	Interface int          `json:"interface"`
	Address   netip.Prefix `json:"address"`
	Gateway   netip.Addr   `json:"gateway"`
}

// Route leads out of the pod.
type Route struct {
	To netip.Prefix `json:"dst"`
}

// Run carries out one call: getenv and stdin are its input, stdout gets the answer. The
// error has been written there as well.
func Run(getenv func(string) string, stdin io.Reader, stdout io.Writer) error {
	version := versions[len(versions)-1]
	answer, err := run(getenv, stdin, &version)
	if err != nil {
		var f *Fault
		if !errors.As(err, &f) {
			f = &Fault{Code: codeFailed, Message: err.Error()}
		}
		f.Version = version
		answer = f
	}
	if answer == nil {
		return err
	}
	if raw, ok := answer.(json.RawMessage); ok {
		_, werr := stdout.Write(raw)
		return errors.Join(err, werr)
	}
	return errors.Join(err, json.NewEncoder(stdout).Encode(answer))
}

func run(getenv func(string) string, stdin io.Reader, version *string) (any, error) {
	call := Call{Verb: getenv("CNI_COMMAND"), Container: getenv("CNI_CONTAINERID"), Namespace: getenv("CNI_NETNS"),
		Interface: getenv("CNI_IFNAME"), Path: filepath.SplitList(getenv("CNI_PATH"))}
	if call.Verb == "VERSION" {
		return struct {
			Version string   `json:"cniVersion"`
			All     []string `json:"supportedVersions"`
		}{*version, versions}, nil
	}
	text, err := io.ReadAll(io.LimitReader(stdin, 1<<20))
	if err != nil {
		return nil, &Fault{Code: codeDecoding, Message: "cannot read the configuration", Details: err.Error()}
	}
	var cfg Config
	if err := json.Unmarshal(text, &cfg); err != nil {
		return nil, &Fault{Code: codeDecoding, Message: "cannot decode the configuration", Details: err.Error()}
	}
	if cfg.CNIVersion == "" {
		cfg.CNIVersion = "0.3.0"
	}
	if !slices.Contains(versions, cfg.CNIVersion) {
		return nil, &Fault{Code: 1, Message: "incompatible CNI versions", Details: fmt.Sprintf("config is %q, plugin supports %q", cfg.CNIVersion, versions)}
	}
	*version = cfg.CNIVersion
	if err := valid(&cfg, &call); err != nil {
		return nil, err
	}
	switch call.Verb {
	case "ADD":
		return add(&cfg, &call)
	case "DEL":
		return nil, del(&cfg, &call)
	case "CHECK":
		return nil, check(&cfg, &call)
	}
	return nil, &Fault{Code: codeEnvironment, Message: fmt.Sprintf("unknown CNI_COMMAND: %v", call.Verb)}
}

// valid refuses what cannot be meant.
func valid(cfg *Config, call *Call) error {
	config := func(format string, args ...any) error {
		return &Fault{Code: codeConfig, Message: fmt.Sprintf(format, args...)}
	}
	if cfg.Name == "" || filepath.Base(cfg.Name) != cfg.Name {
		return config("name: %q is no name of a network", cfg.Name)
	}
	if cfg.Bridge == "" || len(cfg.Bridge) > 15 {
		return config("bridge: %q is no name of an interface", cfg.Bridge)
	}
	if len(cfg.Ranges) == 0 {
		return config("ranges: there is none")
	}
	for i, r := range cfg.Ranges {
		if !r.IsValid() || r != r.Masked() || r.Addr().BitLen()-r.Bits() < 2 {
			return config("ranges: %v is no range with room for pods", r)
		}
		if slices.ContainsFunc(cfg.Ranges[:i], func(other netip.Prefix) bool { return other.Addr().Is4() == r.Addr().Is4() }) {
			return config("ranges: %v is the second of its family", r)
		}
	}
	if cfg.DataDir == "" {
		cfg.DataDir = "/var/lib/cni/networks"
	}
	if call.Container == "" || filepath.Base(call.Container) != call.Container {
		return &Fault{Code: codeEnvironment, Message: fmt.Sprintf("CNI_CONTAINERID: %q is no identifier", call.Container)}
	}
	if call.Interface == "" || len(call.Interface) > 15 {
		return &Fault{Code: codeEnvironment, Message: fmt.Sprintf("CNI_IFNAME: %q is no name of an interface", call.Interface)}
	}
	if call.Namespace == "" && call.Verb != "DEL" {
		return &Fault{Code: codeEnvironment, Message: "CNI_NETNS is missing"}
	}
	return nil
}

// add connects the pod. What it made when it fails is undone.
func add(cfg *Config, call *Call) (answer any, err error) {
	book := bookOf(cfg)
	addresses, err := book.take(call.Container, call.Interface)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unplug(call), book.give(call.Container, call.Interface))
		}
	}()
	res := &Result{Version: cfg.CNIVersion}
	if res.Interfaces, err = plug(cfg, call, addresses); err != nil {
		return nil, err
	}
	for _, a := range addresses {
		ip := IP{Interface: len(res.Interfaces) - 1, Address: a, Gateway: gateway(a)}
		out := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if a.Addr().Is4() {
			out = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		if cfg.CNIVersion < "1" {
			ip.Family = map[bool]string{true: "4", false: "6"}[a.Addr().Is4()]
		}
		res.IPs, res.Routes = append(res.IPs, ip), append(res.Routes, Route{To: out})
	}
	if !hasPorts(cfg) {
		return res, nil
	}
	if cfg.Previous, err = json.Marshal(res); err != nil {
		return nil, err
	}
	return ports(cfg, call)
}

// del disconnects the pod, whoever connected it.
func del(cfg *Config, call *Call) error {
	var faults []error
	if hasPorts(cfg) {
		_, err := ports(cfg, call)
		faults = append(faults, err)
	}
	if err := unplug(call); err != nil {
		return errors.Join(append(faults, err)...) // the address may still answer: it stays booked
	}
	return errors.Join(append(faults, bookOf(cfg).give(call.Container, call.Interface))...)
}

// check finds out whether the pod still is connected as the answer to ADD said.
func check(cfg *Config, call *Call) error {
	var was Result
	if len(cfg.Previous) == 0 {
		return &Fault{Code: codeConfig, Message: "prevResult is missing"}
	}
	if err := json.Unmarshal(cfg.Previous, &was); err != nil {
		return &Fault{Code: codeDecoding, Message: "cannot decode prevResult", Details: err.Error()}
	}
	if err := plugged(call, was.IPs); err != nil {
		return err
	}
	if !hasPorts(cfg) {
		return nil
	}
	_, err := ports(cfg, call)
	return err
}
