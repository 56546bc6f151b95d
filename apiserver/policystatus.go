package apiserver

import (
	"context"
	"encoding/json"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/keelson/keelson/apiserver/admission/policy"
	"github.com/keelson/keelson/apiserver/discovery"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/proto/openapi"
)

// policyStatusAgain is when a status that could not be written is tried again.
const policyStatusAgain = 500 * time.Millisecond

var grValidatingPolicies = schema.GroupResource{Group: admissionv1.GroupName, Resource: policy.ValidatingPolicies}

// checkPolicies writes what type checking says about each ValidatingAdmissionPolicy into its
// status, once for each generation. With several servers the first one does it.
func (s *server) checkPolicies(ctx context.Context) error {
	select {
	case <-s.cache.Ready():
	case <-ctx.Done():
		return nil
	}
	changed := make(chan struct{}, 1)
	g := run.New(ctx)
	g.Go("follow", func(ctx context.Context) error {
		return s.cache.Follow(ctx, watchcache.Selection{Prefix: policy.ValidatingPolicies}, changed)
	})
	g.Go("check", func(ctx context.Context) error {
		for {
			var again <-chan time.Time
			if err := s.checkPoliciesOnce(ctx); err != nil && ctx.Err() == nil {
				s.log.Debug("cannot write the status of policies, trying again", "err", err)
				again = time.After(policyStatusAgain)
			}
			select {
			case <-changed:
			case <-again:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

func (s *server) checkPoliciesOnce(ctx context.Context) error {
	var todo []*admissionv1.ValidatingAdmissionPolicy
	err := s.cache.Reader().Each(grValidatingPolicies, "", func(o resources.Object) bool {
		if p, ok := o.(*admissionv1.ValidatingAdmissionPolicy); ok && p.Generation > p.Status.ObservedGeneration {
			todo = append(todo, p)
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, p := range todo {
		warnings, err := policy.Check(p, s.reg.All(), schemaOf)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = s.api.Update(ctx, grValidatingPolicies, "status", "", p.Name, func(o resources.Object) (resources.Object, error) {
			next := o.DeepCopyObject().(*admissionv1.ValidatingAdmissionPolicy)
			if next.UID == p.UID && next.Generation == p.Generation {
				next.Status.ObservedGeneration = p.Generation
				next.Status.TypeChecking = &admissionv1.TypeChecking{ExpressionWarnings: warnings}
			}
			return next, nil
		})
		cancel()
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// schemaOf is a kind's OpenAPI schema without references; nil when it has none.
func schemaOf(row *resources.Row) *spec.Schema {
	read := func(text string) *spec.Schema {
		out := &spec.Schema{}
		if json.Unmarshal([]byte(text), out) != nil {
			return nil
		}
		return out
	}
	find := func(name string) *spec.Schema {
		if text, ok := openapi.V3(name); ok {
			return read(text)
		}
		return nil
	}
	if d, ok := row.Custom.(discovery.Described); ok {
		return policy.Inline(read(d.OpenAPI()), find)
	}
	if row.Custom != nil {
		return nil
	}
	if named, ok := row.New().(interface{ OpenAPIModelName() string }); ok {
		return policy.Inline(find(named.OpenAPIModelName()), find)
	}
	return nil
}
