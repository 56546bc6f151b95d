package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// hasPorts tells whether the pod has host ports.
func hasPorts(cfg *Config) bool {
	var list []json.RawMessage
	return json.Unmarshal(cfg.Runtime.PortMappings, &list) == nil && len(list) > 0
}

// portsLimit is how long portmap may take: it waits for others who change rules.
const portsLimit = time.Minute

// ports has the portmap plugin do its part of the call, with what is there so far as
// prevResult. Its answer is the whole one.
func ports(cfg *Config, call *Call) (json.RawMessage, error) {
	program := ""
	for _, dir := range call.Path {
		at := filepath.Join(dir, "portmap")
		if _, err := os.Stat(at); err == nil {
			program = at
			break
		}
	}
	if program == "" {
		return nil, fmt.Errorf("the pod has host ports and the portmap plugin is not in %v", call.Path)
	}
	input, err := json.Marshal(struct {
		Version  string          `json:"cniVersion"`
		Name     string          `json:"name"`
		Type     string          `json:"type"`
		Runtime  any             `json:"runtimeConfig"`
		Previous json.RawMessage `json:"prevResult,omitempty"`
	}{cfg.CNIVersion, cfg.Name, "portmap", cfg.Runtime, cfg.Previous})
	if err != nil {
		return nil, err
	}
	var out, log bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), portsLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program) // with our environment: that is the call
	cmd.WaitDelay = time.Second              // it starts programs of its own, which keep its output open
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &log
	if err := cmd.Run(); err != nil {
		f := &Fault{}
		if json.Unmarshal(out.Bytes(), f) == nil && f.Message != "" {
			return nil, f
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("it did not end within %v", portsLimit)
		}
		return nil, errors.Join(fmt.Errorf("portmap: %w", err), errors.New(log.String()))
	}
	return out.Bytes(), nil
}
