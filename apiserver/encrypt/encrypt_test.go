package encrypt_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/encrypt"
	"github.com/keelson/keelson/apiserver/encrypt/kmstest"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/store/storetest"
)

// resource reads keys like "secrets/d/a" and "apps/deployments/d/a".
func resource(key string) schema.GroupResource {
	parts := strings.Split(key, "/")
	if parts[0] == "apps" {
		return schema.GroupResource{Group: "apps", Resource: parts[1]}
	}
	return schema.GroupResource{Resource: parts[0]}
}

func secret(n int) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune('a'+n)), 32)))
}

func rule(resources, providers string) string {
	return fmt.Sprintf("- resources: [%s]\n  providers: [%s]\n", resources, providers)
}

func key(kind, name string, n int) string {
	return fmt.Sprintf("{%s: {keys: [{name: %s, secret: %s}]}}", kind, name, secret(n))
}

func file(rules ...string) string {
	return "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + strings.Join(rules, "")
}

func open(t *testing.T, below store.Store, text string, change ...func(*encrypt.Options)) *encrypt.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "encryption.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := encrypt.Options{Below: below, File: path, Prefix: "/registry", Resource: resource}
	for _, c := range change {
		c(&opts)
	}
	s, err := encrypt.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func raw(t *testing.T, s store.Store, key string) string {
	t.Helper()
	kv, err := s.Get(context.Background(), key)
	if err != nil || kv == nil {
		t.Fatalf("get %s: %v, %v", key, kv, err)
	}
	return string(kv.Value)
}

func put(t *testing.T, s store.Store, key, value string, seen int64) int64 {
	t.Helper()
	rev, err := s.Put(context.Background(), key, []byte(value), seen, 0)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

// The store's contract holds through every cipher.
func TestContract(t *testing.T) {
	for _, kind := range []string{"aesgcm", "aescbc", "secretbox"} {
		t.Run(kind, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store { return open(t, memory.New(), file(rule("'*.*'", key(kind, "k", 1)))) })
		})
	}
}

// What is sealed begins with upstream's prefix, does not hold the text, and is refused elsewhere.
func TestSealed(t *testing.T) {
	const text = "a secret of sixteen bytes and more"
	for _, kind := range []string{"aesgcm", "aescbc", "secretbox"} {
		below := memory.New()
		s := open(t, below, file(rule("secrets", key(kind, "key1", 1)+", {identity: {}}")))
		rev := put(t, s, "secrets/d/a", text, 0)
		plainRev := put(t, s, "configmaps/d/a", text, 0)
		if got := raw(t, below, "secrets/d/a"); !strings.HasPrefix(got, "k8s:enc:"+kind+":v1:key1:") || strings.Contains(got, "sixteen") {
			t.Errorf("%s: stored is %.60q", kind, got)
		}
		if raw(t, s, "secrets/d/a") != text || raw(t, below, "configmaps/d/a") != text {
			t.Errorf("%s: the text is not as it was written", kind)
		}
		// Copied to another key: AES-GCM notices.
		moved := raw(t, below, "secrets/d/a")
		put(t, below, "secrets/d/b", moved, 0)
		_, err := s.Get(context.Background(), "secrets/d/b")
		if kind == "aesgcm" && err == nil {
			t.Errorf("%s: a value that was moved to another key was read", kind)
		}
		// A key that nobody has, and a resource that is not configured.
		for _, c := range []string{rule("secrets", key(kind, "key2", 1)), rule("configmaps", key(kind, "key1", 1))} {
			var unreadable *encrypt.UnreadableError
			_, err := open(t, below, file(c)).Get(context.Background(), "secrets/d/a")
			if !errors.As(err, &unreadable) || unreadable.Key != "/registry/secrets/d/a" || !strings.Contains(err.Error(), "k8s:enc:"+kind+":v1:key1") {
				t.Errorf("%s: without the key: %v", kind, err)
			}
		}
		// The padding of CBC may fit by chance; what is read then is not the text.
		kv, err := open(t, below, file(rule("secrets", key(kind, "key1", 2)))).Get(context.Background(), "secrets/d/a")
		if err == nil && (kind != "aescbc" || string(kv.Value) == text) {
			t.Errorf("%s: read with another key of the same name", kind)
		}
		_, _ = rev, plainRev
	}
}

// Keys are changed as the documentation tells: the new key second, then first, then the values
// are written again, then the old key goes.
func TestRotation(t *testing.T) {
	ctx := context.Background()
	below := memory.New()
	put(t, below, "secrets/d/a", "plain", 0)
	stages := []struct {
		providers string
		stale     bool
	}{
		{"{identity: {}}, " + key("aesgcm", "k1", 1), false},
		{key("aesgcm", "k1", 1) + ", {identity: {}}", true},
		{key("secretbox", "k2", 2) + ", " + key("aesgcm", "k1", 1), true},
		{key("secretbox", "k2", 2), false},
		{"{identity: {}}, " + key("secretbox", "k2", 2), true},
	}
	for i, stage := range stages {
		s := open(t, below, file(rule("secrets", stage.providers)))
		kv, err := s.Get(ctx, "secrets/d/a")
		if err != nil || string(kv.Value) != "plain" {
			t.Fatalf("stage %d: %v, %v", i, kv, err)
		}
		if stale, err := s.Stale(ctx, "secrets/d/a"); err != nil || stale != stage.stale {
			t.Errorf("stage %d: stale is %v, %v", i, stale, err)
		}
		put(t, s, "secrets/d/a", "plain", kv.ModRev)
		if stale, err := s.Stale(ctx, "secrets/d/a"); err != nil || stale {
			t.Errorf("stage %d: stale after a write: %v, %v", i, stale, err)
		}
	}
	if got := raw(t, below, "secrets/d/a"); got != "plain" {
		t.Errorf("back to plain: %q", got)
	}
}

func TestWildcards(t *testing.T) {
	below := memory.New()
	s := open(t, below, file(
		rule("events", "{identity: {}}"), rule("deployments.apps", key("aescbc", "d", 1)), rule("'*.apps'", key("aescbc", "apps", 2)),
		rule("'*.'", key("aescbc", "core", 3)), rule("'*.*'", key("aescbc", "all", 4)),
	))
	for at, want := range map[string]string{
		"events/d/a": "text", "apps/deployments/d/a": "k8s:enc:aescbc:v1:d:", "apps/daemonsets/d/a": "k8s:enc:aescbc:v1:apps:", "secrets/d/a": "k8s:enc:aescbc:v1:core:",
	} {
		put(t, s, at, "text", 0)
		if got := raw(t, below, at); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %.40q, want %s", at, got, want)
		}
	}
}

func TestFaults(t *testing.T) {
	for want, text := range map[string]string{
		"at least one resources is required":       "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n",
		"not apiserver.config.k8s.io/v1":           "apiVersion: v1\nkind: Secret\n",
		"unknown field":                            file(rule("secrets", "{rot13: {}}")),
		"expected one of [32]":                     file(rule("secrets", "{aescbc: {keys: [{name: a, secret: YWJj}]}}")),
		"secrets must be base64 encoded":           file(rule("secrets", "{aescbc: {keys: [{name: a, secret: '***'}]}}")),
		"name is a mandatory field for a key":      file(rule("secrets", "{aesgcm: {keys: [{secret: "+secret(1)+"}]}}")),
		"overlapping resources":                    file(rule("secrets, '*.'", "{identity: {}}")),
		"masked by an earlier rule":                file(rule("'*.*'", "{identity: {}}"), rule("secrets", "{identity: {}}")),
		"Use 'events' instead":                     file(rule("events.events.k8s.io", "{identity: {}}")),
		"across groups":                            file(rule("'secrets.*'", "{identity: {}}")),
		"only unix is supported":                   file(rule("secrets", "{kms: {apiVersion: v2, name: a, endpoint: 'http://x'}}")),
		"only v2 is supported":                     file(rule("secrets", "{kms: {apiVersion: v1, name: a, endpoint: 'unix:///x'}}")),
		"must not contain ':'":                     file(rule("secrets", "{kms: {apiVersion: v2, name: 'a:b', endpoint: 'unix:///x'}}")),
		"duplicate KMS provider name":              file(rule("secrets", "{kms: {apiVersion: v2, name: a, endpoint: 'unix:///x'}}, {kms: {apiVersion: v2, name: a, endpoint: 'unix:///y'}}")),
		"more than one provider specified":         file(rule("secrets", "{identity: {}, aesgcm: {keys: [{name: a, secret: "+secret(1)+"}]}}")),
		"does not contain any of the expected":     file(rule("secrets", "{}")),
		"resource name should not contain capital": file(rule("Secrets", "{identity: {}}")),
		"use '*.' to encrypt all the resources":    file(rule("'*'", "{identity: {}}")),
		"resources which do not have REST API/s":   file(rule("serviceipallocations", "{identity: {}}")),
		"'extensions' group has been removed":      file(rule("ingresses.extensions", "{identity: {}}")),
		"at least one providers is required":       file(rule("secrets", "")),
		"at least one keys is required":            file(rule("secrets", "{secretbox: {keys: []}}")),
		"timeout should be a positive value":       file(rule("secrets", "{kms: {apiVersion: v2, name: a, endpoint: 'unix:///x', timeout: 0s}}")),
		"cachesize is not supported in v2":         file(rule("secrets", "{kms: {apiVersion: v2, name: a, endpoint: 'unix:///x', cachesize: 5}}")),
		"endpoint is a mandatory field for a kms":  file(rule("secrets", "{kms: {apiVersion: v2, name: a}}")),
		"name is a mandatory field for a provider": file(rule("secrets", "{kms: {apiVersion: v2, endpoint: 'unix:///x'}}")),
		"secret is a mandatory field for a key":    file(rule("secrets", "{aesgcm: {keys: [{name: a}]}}")),
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := encrypt.New(encrypt.Options{Below: memory.New(), File: path, Prefix: "/registry", Resource: resource})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("want %q, got %v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), secret(1)) {
			t.Errorf("the message shows a secret: %v", err)
		}
	}
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A plugin seals seeds only: it is asked once for many values, may be away while values are read
// that were sealed with an open seed, and changes its key without a new configuration.
func TestKMS(t *testing.T) {
	ctx := context.Background()
	socket := filepath.Join(t.TempDir(), "kms.sock")
	p, err := kmstest.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	config := file(rule("secrets", "{kms: {apiVersion: v2, name: vault, endpoint: 'unix://"+socket+"'}}, {identity: {}}"))
	below := memory.New()
	s := open(t, below, config)
	eventually(t, "plugin is healthy", s.Healthy)
	revs := map[string]int64{}
	for i := range 20 {
		at := fmt.Sprintf("secrets/d/%d", i)
		revs[at] = put(t, s, at, "text", 0)
		if got := raw(t, below, at); !strings.HasPrefix(got, "k8s:enc:kms:v2:vault:") || strings.Contains(got, "text") {
			t.Fatalf("stored is %.60q", got)
		}
	}
	again := open(t, below, config) // another server, or this one after a restart
	eventually(t, "plugin is healthy", again.Healthy)
	for at := range revs {
		if raw(t, again, at) != "text" {
			t.Fatalf("%s is not as it was written", at)
		}
	}
	if n := p.Decrypts(); n != 1 {
		t.Errorf("the plugin was asked %d times to open one seed", n)
	}
	put(t, below, "secrets/d/moved", raw(t, below, "secrets/d/1"), 0)
	if _, err := again.Get(ctx, "secrets/d/moved"); err == nil {
		t.Error("a value that was moved to another key was read")
	}

	p.Stop()
	if raw(t, again, "secrets/d/1") != "text" {
		t.Error("an open seed needs the plugin")
	}
	cold := open(t, below, config)
	if _, err := cold.Get(ctx, "secrets/d/1"); err == nil {
		t.Error("a seed that is not open was used without the plugin")
	}
	if _, err := cold.Put(ctx, "secrets/d/new", []byte("text"), 0, 0); err == nil || !strings.Contains(err.Error(), "KMS provider vault") {
		t.Errorf("a write without a seed: %v", err)
	}
	p.Rotate()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "plugin is healthy again", cold.Healthy)
	if stale, err := cold.Stale(ctx, "secrets/d/1"); err != nil || !stale {
		t.Errorf("a value of the key before is not stale: %v", err)
	}
	put(t, cold, "secrets/d/1", "text", revs["secrets/d/1"])
	if stale, err := cold.Stale(ctx, "secrets/d/1"); err != nil || stale {
		t.Errorf("a value that was written again is stale: %v", err)
	}
}

// The file is followed; one that is wrong changes nothing.
func TestReload(t *testing.T) {
	var path string
	below := memory.New()
	s := open(t, below, file(rule("secrets", key("aesgcm", "k1", 1))), func(o *encrypt.Options) { o.Reload, path = true, o.File })
	rev := put(t, s, "secrets/d/a", "text", 0)
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nonsense")
	write(file(rule("secrets", key("aesgcm", "k2", 2)+", "+key("aesgcm", "k1", 1))))
	eventually(t, "new key writes", func() error {
		rev = put(t, s, "secrets/d/a", "text", rev)
		if got := raw(t, below, "secrets/d/a"); !strings.HasPrefix(got, "k8s:enc:aesgcm:v1:k2:") {
			return fmt.Errorf("stored is %.40q", got)
		}
		return nil
	})
	write(file(rule("secrets", "{kms: {apiVersion: v2, name: a, endpoint: 'unix:///nowhere'}}")))
	if raw(t, s, "secrets/d/a") != "text" {
		t.Error("a wrong file has changed what can be read")
	}
}
