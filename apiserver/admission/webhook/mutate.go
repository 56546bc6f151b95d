package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionapi "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/match"
	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/resources"
)

// rounds is what the second round must know of the first: a webhook with
// reinvocationPolicy IfNeeded is asked again when the object has changed after it was asked.
type rounds struct {
	asked  map[string]bool // may be asked again, and nothing has changed since
	needed map[string]bool // are asked in the second round
	last   runtime.Object  // as the first round has left it
}

const memo = "MutatingAdmissionWebhook"

func roundsOf(a *admission.Attributes) *rounds {
	if a.Memo == nil {
		a.Memo = map[string]any{}
	}
	r, ok := a.Memo[memo].(*rounds)
	if !ok {
		r = &rounds{asked: map[string]bool{}, needed: map[string]bool{}}
		a.Memo[memo] = r
	}
	return r
}

// changed: everybody who was asked before wants to know.
func (r *rounds) changed() {
	for id := range r.asked {
		r.needed[id] = true
	}
	clear(r.asked)
}

func (s *server) mutate(ctx context.Context, a *admission.Attributes, from *match.Followed[[]*hook]) error {
	hooks, err := from.Get()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if len(hooks) == 0 || match.Exempt(a.Row) {
		return nil
	}
	r := roundsOf(a)
	if a.Round > 0 && r.last != nil && !equality.Semantic.DeepEqual(r.last, a.Object) {
		r.changed()
	}
	views := map[*resources.Row]*view{}
	called := false
	for i, h := range hooks {
		if a.Round > 0 && !r.needed[h.id] {
			continue
		}
		v, err := s.wants(ctx, a, h, views)
		if err != nil {
			return err
		}
		if v == nil {
			continue
		}
		called = true
		began := time.Now()
		altered, patch, err := s.alter(ctx, a, h, v)
		s.cfg.Metrics.asks(ctx, a, h, time.Since(began), err)
		at := place(a.Round, i)
		note(ctx, annotations[admitting]+at, mutation{h.of, h.name, altered})
		if patch != nil {
			detail(ctx, "patch.webhook.admission.k8s.io/"+at, change{h.of, h.name, patch, admissionapi.PatchTypeJSONPatch})
		}
		if altered {
			clear(views)
			r.changed()
			a.Again()
		}
		if h.again {
			r.asked[h.id] = true
		}
		if err = s.verdict(ctx, h, at, err); err != nil {
			return err
		}
	}
	if called && a.Round == 0 && a.Object != nil {
		r.last = a.Object.DeepCopyObject()
	}
	return nil
}

// mutation and change are what the audit event says of a webhook that was asked, and of its patch.
type mutation struct {
	Configuration string `json:"configuration"`
	Webhook       string `json:"webhook"`
	Mutated       bool   `json:"mutated"`
}

type change struct {
	Configuration string                 `json:"configuration"`
	Webhook       string                 `json:"webhook"`
	Patch         jsonpatch.Patch        `json:"patch,omitempty"`
	Type          admissionapi.PatchType `json:"patchType,omitempty"`
}

func note(ctx context.Context, key string, m mutation) {
	if audit.From(ctx) == nil {
		return
	}
	if text, err := json.Marshal(m); err == nil {
		admission.Annotate(ctx, key, string(text))
	}
}

func detail(ctx context.Context, key string, c change) {
	if audit.From(ctx) == nil {
		return
	}
	if text, err := json.Marshal(c); err == nil {
		audit.From(ctx).Detail(key, string(text))
	}
}

// alter asks one webhook and applies its patch, which is returned too when it was applied.
func (s *server) alter(ctx context.Context, a *admission.Attributes, h *hook, v *view) (altered bool, patch jsonpatch.Patch, err error) {
	answer, err := s.ask(ctx, a, h, v)
	if err != nil {
		return false, nil, err
	}
	warn(a, answer.Warnings)
	if !answer.Allowed {
		return false, nil, refusal(h.name, answer.Result)
	}
	switch {
	case len(answer.Patch) == 0 && answer.PatchType == nil:
		return false, nil, nil
	case len(answer.Patch) == 0:
		return false, nil, &failure{h.name, errors.New("received invalid webhook response: webhook returned response.patchType but not response.patch")}
	case answer.PatchType == nil && h.version == "v1":
		return false, nil, &failure{h.name, errors.New("received invalid webhook response: webhook returned response.patch but not response.patchType")}
	case answer.PatchType != nil && *answer.PatchType == "":
		return false, nil, &failure{h.name, errors.New(`received invalid webhook response: webhook returned invalid response.patchType of ""`)}
	}
	patch, err = jsonpatch.DecodePatch(answer.Patch)
	if err != nil {
		return false, nil, &failure{h.name, fmt.Errorf("received undecodable patch in webhook response: %w", err)}
	}
	if len(patch) == 0 {
		return false, nil, nil
	}
	if answer.PatchType != nil && *answer.PatchType != admissionapi.PatchTypeJSONPatch {
		return false, nil, &failure{h.name, fmt.Errorf("unsupported patch type %q", *answer.PatchType)}
	}
	if v.obj == nil {
		return false, nil, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.name))
	}
	next, err := patched(v.obj, patch)
	if err != nil {
		return false, nil, apierrors.NewInternalError(err)
	}
	if was, is := v.obj.GetObjectKind().GroupVersionKind(), next.GetObjectKind().GroupVersionKind(); was != is {
		return false, nil, apierrors.NewInternalError(fmt.Errorf("admission webhook %q made a %s of a %s", h.name, is, was))
	}
	if equality.Semantic.DeepEqual(v.obj, next) {
		return false, patch, nil
	}
	if err := match.Put(a, v.row, next); err != nil {
		return false, nil, err
	}
	return true, patch, nil
}

// patched applies a JSON patch to an object.
func patched(obj runtime.Object, patch jsonpatch.Patch) (runtime.Object, error) {
	text, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	if text, err = patch.Apply(text); err != nil {
		return nil, err
	}
	next := match.Empty(obj)
	if u, ok := next.(*unstructured.Unstructured); ok {
		return u, kjson.UnmarshalCaseSensitivePreserveInts(text, &u.Object)
	}
	return next, kjson.UnmarshalCaseSensitivePreserveInts(text, next)
}
