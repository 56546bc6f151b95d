package encrypt

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/libs/run"
)

// configuration is apiserver.config.k8s.io/v1 EncryptionConfiguration.
type configuration struct {
	metav1.TypeMeta `json:",inline"`
	Resources       []struct {
		Resources []string         `json:"resources"`
		Providers []providerConfig `json:"providers"`
	} `json:"resources"`
}

type providerConfig struct {
	AESGCM    *keys      `json:"aesgcm,omitempty"`
	AESCBC    *keys      `json:"aescbc,omitempty"`
	Secretbox *keys      `json:"secretbox,omitempty"`
	Identity  *struct{}  `json:"identity,omitempty"`
	KMS       *kmsConfig `json:"kms,omitempty"`
}

type keys struct {
	Keys []struct {
		Name   string `json:"name"`
		Secret string `json:"secret"` // base64
	} `json:"keys"`
}

type kmsConfig struct {
	APIVersion string           `json:"apiVersion"`
	Name       string           `json:"name"`
	CacheSize  *int32           `json:"cachesize,omitempty"`
	Endpoint   string           `json:"endpoint"` // unix:///path, or unix:///@name
	Timeout    *metav1.Duration `json:"timeout,omitempty"`
}

// provider seals and opens values. aad is the etcd key of the value.
type provider interface {
	// prefix stands before what seal returns.
	prefix() string
	// owns tells by the prefix whether open may be tried.
	owns(value []byte) bool
	seal(ctx context.Context, plain, aad []byte) ([]byte, error)
	// open gets the value without the prefix. stale: the provider would seal with another key now.
	open(ctx context.Context, sealed, aad []byte) (plain []byte, stale bool, err error)
}

// rules are a configuration, ready to be used. They do not change but for text.
type rules struct {
	text    []byte // of the file; Run's own
	entries []entry
	plugins []*plugin
}

// entry is a resource ("*" is all) with its providers, the first of which seals.
type entry struct {
	resource  schema.GroupResource
	providers []provider
}

// of returns the providers of a resource; none: values are plain.
func (r *rules) of(gr schema.GroupResource) []provider {
	for _, e := range r.entries {
		if m := e.resource; (m.Resource == "*" || m.Resource == gr.Resource) && (m.Group == "*" || m.Group == gr.Group) {
			return e.providers
		}
	}
	return nil
}

func (r *rules) healthy() error {
	var errs []error
	for _, p := range r.plugins {
		if err := p.healthy(); err != nil {
			errs = append(errs, fmt.Errorf("kms-provider %s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

// start serves the plugins until stop, or until the group ends.
func (r *rules) start(g *run.Group) (stop func()) {
	var stops []func()
	for _, p := range r.plugins {
		stops = append(stops, p.start(g))
	}
	return func() {
		for _, s := range stops {
			s()
		}
	}
}

// compile reads and checks a configuration, and reports every fault.
func compile(text []byte, m *Metrics) (*rules, error) {
	var c configuration
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return nil, err
	}
	if c.Kind != "EncryptionConfiguration" || c.APIVersion != "apiserver.config.k8s.io/v1" {
		return nil, fmt.Errorf("is %s %s, not apiserver.config.k8s.io/v1 EncryptionConfiguration", c.APIVersion, c.Kind)
	}
	root := field.NewPath("resources")
	var errs field.ErrorList
	if len(c.Resources) == 0 {
		errs = append(errs, field.Required(root, "at least one resources is required"))
	}
	r := &rules{text: bytes.Clone(text)}
	names := map[string]bool{}
	for i, rc := range c.Resources {
		at := root.Index(i)
		var list []schema.GroupResource
		var providers []provider
		if len(rc.Resources) == 0 {
			errs = append(errs, field.Required(at.Child("resources"), "at least one resources is required"))
		}
		if len(rc.Providers) == 0 {
			errs = append(errs, field.Required(at.Child("providers"), "at least one providers is required"))
		}
		for j, text := range rc.Resources {
			gr, err := readResource(text)
			if err == nil && slices.ContainsFunc(list, func(o schema.GroupResource) bool { return overlaps(gr, o) }) {
				err = errors.New("using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked")
			}
			if err == nil && r.masked(gr) {
				err = errors.New("is masked by an earlier rule with a wildcard")
			}
			if err != nil {
				errs = append(errs, field.Invalid(at.Child("resources").Index(j), text, err.Error()))
				continue
			}
			list = append(list, gr)
		}
		for j, pc := range rc.Providers {
			read, more := readProvider(pc, at.Child("providers").Index(j), names, m)
			errs = append(errs, more...)
			providers = append(providers, read...)
			for _, p := range read {
				if k, ok := p.(*plugin); ok {
					r.plugins = append(r.plugins, k)
				}
			}
		}
		r.add(list, providers)
	}
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return r, nil
}

// add appends a list of the file. A resource that stands in several gets the providers of all, in order.
func (r *rules) add(list []schema.GroupResource, providers []provider) {
	for i := range r.entries {
		for _, gr := range list {
			if r.entries[i].resource == gr {
				r.entries[i].providers = slices.Concat(r.entries[i].providers, providers)
			}
		}
	}
	for _, gr := range list {
		if !slices.ContainsFunc(r.entries, func(o entry) bool { return o.resource == gr }) {
			r.entries = append(r.entries, entry{gr, providers})
		}
	}
}

func (r *rules) masked(gr schema.GroupResource) bool {
	return slices.ContainsFunc(r.entries, func(o entry) bool {
		w := o.resource
		return w.Resource == "*" && (w.Group == "*" || w.Group == gr.Group)
	})
}

// overlaps: one of two resources of a list would hide the other.
func overlaps(a, b schema.GroupResource) bool {
	if a == b {
		return true
	}
	if a.Resource != "*" && b.Resource != "*" {
		return false
	}
	return a.Group == b.Group || a.Group == "*" || b.Group == "*"
}

// readResource reads "secrets", "deployments.apps", "*.apps", "*." or "*.*".
func readResource(text string) (schema.GroupResource, error) {
	gr := schema.ParseGroupResource(text)
	switch {
	case text == "":
		return gr, errors.New("must not be empty")
	case text == "*":
		return gr, errors.New("use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources")
	case strings.ToLower(text) != text:
		return gr, errors.New("resource name should not contain capital letters")
	case gr.Group == "*" && gr.Resource != "*":
		return gr, errors.New("encrypting the same resource across groups is not supported")
	case gr.Group == "events.k8s.io":
		return gr, errors.New("'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file")
	case gr.Group == "extensions":
		return gr, errors.New("'extensions' group has been removed and cannot be used for encryption")
	case gr.Group == "" && slices.Contains([]string{"apiserveripinfo", "serviceipallocations", "servicenodeportallocations"}, gr.Resource):
		return gr, errors.New("resources which do not have REST API/s cannot be encrypted")
	}
	return gr, nil
}

func readProvider(pc providerConfig, at *field.Path, names map[string]bool, m *Metrics) (out []provider, errs field.ErrorList) {
	set := 0
	each := func(name string, k *keys, lengths []int, build func(name string, secret []byte) (provider, error)) {
		if k == nil {
			return
		}
		set++
		p := at.Child(name, "keys")
		if len(k.Keys) == 0 {
			errs = append(errs, field.Required(p, "at least one keys is required"))
		}
		for i, key := range k.Keys {
			if key.Name == "" {
				errs = append(errs, field.Required(p.Index(i).Child("name"), "name is a mandatory field for a key"))
			}
			secret, err := base64.StdEncoding.DecodeString(key.Secret)
			switch {
			case key.Secret == "":
				errs = append(errs, field.Required(p.Index(i).Child("secret"), "secret is a mandatory field for a key"))
				continue
			case err != nil:
				errs = append(errs, field.Invalid(p.Index(i).Child("secret"), "REDACTED", "secrets must be base64 encoded"))
				continue
			case !slices.Contains(lengths, len(secret)):
				errs = append(errs, field.Invalid(p.Index(i).Child("secret"), "REDACTED",
					fmt.Sprintf("secret is not of the expected length, got %d, expected one of %v", len(secret), lengths)))
				continue
			}
			built, err := build(key.Name, secret)
			if err != nil {
				errs = append(errs, field.Invalid(p.Index(i), "REDACTED", err.Error()))
				continue
			}
			out = append(out, built)
		}
	}
	each("aesgcm", pc.AESGCM, []int{16, 24, 32}, newGCM)
	each("aescbc", pc.AESCBC, []int{32}, newCBC)
	each("secretbox", pc.Secretbox, []int{32}, newSecretbox)
	if pc.Identity != nil {
		set++
		out = append(out, identity{})
	}
	if k := pc.KMS; k != nil {
		set++
		p := at.Child("kms")
		u, err := url.Parse(k.Endpoint)
		timeout := 3 * time.Second
		if k.Timeout != nil {
			timeout = k.Timeout.Duration
		}
		switch {
		case k.Name == "":
			errs = append(errs, field.Required(p.Child("name"), "name is a mandatory field for a provider"))
		case strings.Contains(k.Name, ":"):
			errs = append(errs, field.Invalid(p.Child("name"), k.Name, fmt.Sprintf("invalid KMS provider name %s, must not contain ':'", k.Name)))
		case names[k.Name]:
			errs = append(errs, field.Invalid(p.Child("name"), k.Name, fmt.Sprintf("duplicate KMS provider name %s, names must be unique", k.Name)))
		}
		names[k.Name] = true
		if k.APIVersion != "v2" {
			errs = append(errs, field.Invalid(p.Child("apiVersion"), k.APIVersion, "only v2 is supported: KMSv1 is deprecated and off in Kubernetes since v1.29"))
		}
		if k.CacheSize != nil {
			errs = append(errs, field.Invalid(p.Child("cachesize"), *k.CacheSize, "cachesize is not supported in v2"))
		}
		if timeout <= 0 {
			errs = append(errs, field.Invalid(p.Child("timeout"), timeout.String(), "timeout should be a positive value"))
		}
		switch {
		case k.Endpoint == "":
			errs = append(errs, field.Required(p.Child("endpoint"), "endpoint is a mandatory field for a kms"))
		case err != nil:
			errs = append(errs, field.Invalid(p.Child("endpoint"), k.Endpoint, fmt.Sprintf("invalid endpoint for kms provider, error: %v", err)))
		case u.Scheme != "unix":
			errs = append(errs, field.Invalid(p.Child("endpoint"), k.Endpoint, fmt.Sprintf("unsupported scheme %q for KMS provider, only unix is supported", u.Scheme)))
		case len(errs) == 0:
			out = append(out, newPlugin(k.Name, u.Path, timeout, m))
		}
	}
	switch {
	case set == 0:
		errs = append(errs, field.Required(at, "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"))
	case set > 1:
		errs = append(errs, field.Invalid(at, "", "more than one provider specified in a single element, should split into different list elements"))
	}
	return out, errs
}
