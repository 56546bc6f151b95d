package crd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// hook is how a definition's versions are converted by webhook. What was converted is
// remembered, so that all watchers of one event share one call, and a list costs one.
type hook struct {
	client   *crdv1.WebhookClientConfig
	name     string // the definition's
	metrics  *Metrics
	versions []string // of ConversionReview, in order of preference
	send     func(ctx context.Context, client *crdv1.WebhookClientConfig, body []byte) ([]byte, error)

	mu    sync.Mutex // guards what follows; never held during a call
	done  map[conversion]*converted
	bytes int // of the answers in done
}

// conversion is some content and the version it is wanted in. Its result never changes. A
// name and a revision would not do: what is about to be written still has the old ones.
type conversion struct {
	content [sha256.Size]byte
	version string
}

// converted is the result of a conversion, once ready is closed. One that has failed is not
// remembered: only those who were waiting for it share the error.
type converted struct {
	ready chan struct{}
	obj   *unstructured.Unstructured
	err   error
}

const (
	maxConverted   = 8 << 20 // bytes of remembered answers of one definition; then all are forgotten
	maxInReview    = 500     // objects in one review
	conversionTime = 30 * time.Second
)

// hookOf is nil for a definition that does not convert by webhook.
func (k *Keeper) hookOf(c *crdv1.CustomResourceDefinition) *hook {
	if !byWebhook(c) || c.Spec.Conversion.Webhook == nil || c.Spec.Conversion.Webhook.ClientConfig == nil || k.cfg.Send == nil {
		return nil
	}
	w := c.Spec.Conversion.Webhook
	return &hook{
		name: c.Name, metrics: k.cfg.Metrics, client: w.ClientConfig.DeepCopy(), versions: slices.Clone(w.ConversionReviewVersions), send: k.cfg.Send,
		done: map[conversion]*converted{},
	}
}

// to returns a copy of u in this version: renamed, or as the webhook has it. What the
// schema of this version does not know is gone.
func (k *Kind) to(u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	h := k.def.hook
	if h == nil || u.GetAPIVersion() == k.apiVersion() {
		return k.as(u), nil
	}
	out, err := h.convert([]*unstructured.Unstructured{u}, k)
	if err != nil {
		return nil, err
	}
	return k.as(out[0]), nil
}

// Ahead converts stored content into this version, so that Revive finds it done: a few
// calls for many objects. What cannot be read is left to Revive, which says so.
func (k *Kind) Ahead(stored iter.Seq[[]byte]) error {
	h := k.def.hook
	if h == nil {
		return nil
	}
	// Stored content begins like this, its fields being in order; if it does not, it is looked into.
	current := []byte(`{"apiVersion":"` + k.apiVersion() + `",`)
	var todo []*unstructured.Unstructured
	for raw := range stored {
		if bytes.HasPrefix(raw, current) {
			continue
		}
		u := &unstructured.Unstructured{}
		if u.UnmarshalJSON(raw) != nil || k.def.settle(u) != nil || u.GetAPIVersion() == k.apiVersion() {
			continue
		}
		todo = append(todo, u)
	}
	_, err := h.convert(todo, k)
	return err
}

// convert returns the objects in k's version, in their order. They are shared: callers copy.
// It takes at most conversionTime.
func (h *hook) convert(in []*unstructured.Unstructured, k *Kind) ([]*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(context.Background(), conversionTime)
	defer cancel()
	keys, all := make([]conversion, len(in)), make([]*converted, len(in))
	for i, u := range in {
		text, err := json.Marshal(u.Object)
		if err != nil {
			return nil, fmt.Errorf("conversion webhook for %s failed: %w", u.GroupVersionKind(), err)
		}
		keys[i] = conversion{sha256.Sum256(text), k.version}
	}
	var todo []int // what nobody has asked for yet
	h.mu.Lock()
	for i, key := range keys {
		if all[i] = h.done[key]; all[i] == nil {
			all[i] = &converted{ready: make(chan struct{})}
			h.done[key] = all[i]
			todo = append(todo, i)
		}
	}
	h.mu.Unlock()
	var failed error
	for part := range slices.Chunk(todo, maxInReview) {
		ask := make([]*unstructured.Unstructured, len(part))
		for n, i := range part {
			ask[n] = in[i]
		}
		var got []*unstructured.Unstructured
		size := 0
		if failed == nil {
			if got, size, failed = h.review(ctx, ask, k.apiVersion()); failed != nil {
				failed = fmt.Errorf("conversion webhook for %s %w", ask[0].GroupVersionKind(), failed)
			}
		}
		h.mu.Lock()
		if h.bytes += size; h.bytes > maxConverted {
			h.clear()
		}
		for n, i := range part {
			if all[i].err = failed; failed != nil {
				delete(h.done, keys[i])
			} else {
				all[i].obj = got[n]
			}
			close(all[i].ready)
		}
		h.mu.Unlock()
	}
	out := make([]*unstructured.Unstructured, len(in))
	for i, c := range all {
		select {
		case <-c.ready: // mostly long since
		case <-ctx.Done():
			return nil, fmt.Errorf("conversion webhook for %s failed: %w", in[i].GroupVersionKind(), ctx.Err())
		}
		if c.err != nil {
			return nil, c.err
		}
		out[i] = c.obj
	}
	return out, nil
}

// clear forgets what was converted; who waits for a call has its own hold on it. Called with mu held.
func (h *hook) clear() {
	clear(h.done)
	h.bytes = 0
}

// forget drops what was converted: a definition that is idle holds little.
func (h *hook) forget() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done, h.bytes = map[conversion]*converted{}, 0
}

// review asks the webhook; size is that of the answer in bytes. Its errors go on "conversion webhook for <kind>", in upstream's words.
//
// Source: Kubernetes API reference, ConversionReview; documentation, "Versions in
// CustomResourceDefinitions: webhook request and response".
func (h *hook) review(ctx context.Context, in []*unstructured.Unstructured, version string) (out []*unstructured.Unstructured, size int, err error) {
	began, stage := time.Now(), callFails
	defer func() {
		h.metrics.asks(h.name, in[0].GroupVersionKind().Version, schema.FromAPIVersionAndKind(version, "").Version, stage, time.Since(began), err)
	}()
	at := slices.IndexFunc(h.versions, func(v string) bool { return v == "v1" || v == "v1beta1" })
	if at < 0 {
		return nil, 0, errors.New("failed: no supported conversion review versions")
	}
	kind := metav1.TypeMeta{Kind: "ConversionReview", APIVersion: "apiextensions.k8s.io/" + h.versions[at]}
	id := uuid.NewUUID()
	// Both versions have the same fields.
	rq := &crdv1.ConversionReview{TypeMeta: kind, Request: &crdv1.ConversionRequest{UID: id, DesiredAPIVersion: version}}
	for _, u := range in {
		rq.Request.Objects = append(rq.Request.Objects, runtime.RawExtension{Object: u})
	}
	body, err := json.Marshal(rq)
	if err != nil {
		return nil, 0, fmt.Errorf("failed: %w", err)
	}
	text, err := h.send(ctx, h.client, body)
	if err != nil {
		return nil, 0, fmt.Errorf("failed: %v", err) // not %w: a Status of the webhook's is no answer to the client
	}
	stage = badAnswer
	rs := &crdv1.ConversionReview{}
	if err := json.Unmarshal(text, rs); err != nil {
		return nil, 0, fmt.Errorf("failed: couldn't get version/kind; json parse error: %w", err)
	}
	switch {
	case h.versions[at] == "v1" && rs.TypeMeta != kind && rs.TypeMeta != (metav1.TypeMeta{}):
		return nil, 0, fmt.Errorf("failed: expected webhook response of %s, got %s", kind.GroupVersionKind(), rs.GroupVersionKind())
	case rs.Response == nil:
		return nil, 0, errors.New("failed: no response provided")
	case h.versions[at] == "v1" && rs.Response.UID != id:
		return nil, 0, fmt.Errorf("failed: expected response.uid=%q, got %q", id, rs.Response.UID)
	case rs.Response.Result.Status != metav1.StatusSuccess && rs.Response.Result.Message != "":
		return nil, 0, fmt.Errorf("failed: %s", rs.Response.Result.Message)
	case rs.Response.Result.Status != metav1.StatusSuccess:
		return nil, 0, fmt.Errorf("failed: response.result.status was '%s', not 'Success'", rs.Response.Result.Status)
	case len(rs.Response.ConvertedObjects) != len(in):
		if stage = partialAnswer; len(rs.Response.ConvertedObjects) == 0 {
			stage = noObjects
		}
		return nil, 0, fmt.Errorf("returned %d objects, expected %d", len(rs.Response.ConvertedObjects), len(in))
	}
	stage = badObject
	out = make([]*unstructured.Unstructured, len(in))
	for i, raw := range rs.Response.ConvertedObjects {
		out[i] = &unstructured.Unstructured{}
		if err := out[i].UnmarshalJSON(raw.Raw); err != nil {
			return nil, 0, fmt.Errorf("returned invalid converted object at index %d: %w", i, err)
		}
		if got := out[i].GetAPIVersion(); got != version {
			return nil, 0, fmt.Errorf("returned invalid object at index %d: invalid groupVersion (expected %s, received %s)", i, version, got)
		}
		if got := out[i].GetKind(); got != in[i].GetKind() {
			return nil, 0, fmt.Errorf("returned invalid object at index %d: invalid kind (expected %s, received %s)", i, in[i].GetKind(), got)
		}
		if err := same(in[i], out[i]); err != nil {
			return nil, 0, fmt.Errorf("returned invalid object: %w", err)
		}
		if err := restore(in[i], out[i]); err != nil {
			return nil, 0, fmt.Errorf("returned invalid metadata: %w", err)
		}
	}
	return out, len(text), nil
}

// same checks that a webhook answers about the object that it was asked about.
func same(in, out *unstructured.Unstructured) error {
	for _, f := range []struct{ what, was, is string }{
		{"name", in.GetName(), out.GetName()},
		{"namespace", in.GetNamespace(), out.GetNamespace()}, {"UID", string(in.GetUID()), string(out.GetUID())},
	} {
		if f.was != f.is {
			return fmt.Errorf("must have the same %s: %v != %v", f.what, f.was, f.is)
		}
	}
	return nil
}

// restore takes labels and annotations from what a webhook has answered, and puts the rest of metadata back as it was.
func restore(in, out *unstructured.Unstructured) error {
	theirs, ok := out.Object["metadata"].(map[string]any)
	if !ok {
		return errors.New("missing metadata in converted object")
	}
	ours, _ := runtime.DeepCopyJSONValue(in.Object["metadata"]).(map[string]any)
	if ours == nil {
		ours = map[string]any{}
	}
	for _, name := range []string{"labels", "annotations"} {
		if theirs[name] == nil {
			delete(ours, name)
			continue
		}
		m, ok := theirs[name].(map[string]any)
		if !ok {
			return fmt.Errorf("invalid metadata.%s of type %T in converted object", name, theirs[name])
		}
		values := make(map[string]string, len(m))
		for k, v := range m {
			s, ok := v.(string)
			if !ok {
				return fmt.Errorf("metadata.%s[%s] must be a string, but is %T in converted object", name, k, v)
			}
			values[k] = s
		}
		check := func(values map[string]string, p *field.Path) field.ErrorList {
			return metavalidation.ValidateLabels(values, p)
		}
		if name == "annotations" {
			check = apivalidation.ValidateAnnotations
		}
		if errs := check(values, field.NewPath("metadata", name)); len(errs) > 0 {
			return errs.ToAggregate()
		}
		ours[name] = m
	}
	out.Object["metadata"] = ours
	return nil
}
