package patch

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sync"

	"k8s.io/kube-openapi/pkg/schemaconv"
	"k8s.io/kube-openapi/pkg/validation/spec"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/proto/openapi"
)

// Typed is what Row.Custom may implement to say how its fields merge. Without it
// a custom kind's lists are atomic and its maps are merged by key.
type Typed interface {
	MergeType() (typed.ParseableType, error)
}

// types knows how the fields of each kind merge: which lists are maps, sets or
// atomic. A kind is worked out from its OpenAPI definition when it is first
// written; definitions that kinds share (PodSpec) are kept once.
type types struct {
	mu    sync.Mutex
	defs  map[string]smd.TypeDef
	kinds map[*resources.Row]mergeType
}

// mergeType is how a kind's fields merge, for the library and for comparisons.
type mergeType struct {
	typed.ParseableType
	// rule is nil for custom kinds: they have no Go type.
	rule *rule
}

// model is the OpenAPI name of a row's Go type.
func model(row *resources.Row) (string, error) {
	named, ok := row.New().(interface{ OpenAPIModelName() string })
	if !ok {
		return "", fmt.Errorf("%s has no OpenAPI model", row.GVK())
	}
	return named.OpenAPIModelName(), nil
}

func (t *types) of(row *resources.Row) (mergeType, error) {
	if row.Custom != nil {
		if c, ok := row.Custom.(Typed); ok {
			k, err := c.MergeType()
			return mergeType{ParseableType: k}, err
		}
		return mergeType{ParseableType: typed.DeducedParseableType}, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if k, ok := t.kinds[row]; ok {
		return k, nil
	}
	if t.kinds == nil {
		t.kinds, t.defs = map[*resources.Row]mergeType{}, map[string]smd.TypeDef{}
	}
	name, err := model(row)
	if err != nil {
		return mergeType{}, err
	}
	names := openapi.Closure(name)
	if len(names) == 0 {
		return mergeType{}, fmt.Errorf("model %s is not defined", name)
	}
	fresh := map[string]*spec.Schema{}
	for _, n := range names {
		if _, ok := t.defs[n]; ok {
			continue
		}
		text, _ := openapi.V3(n)
		s := &spec.Schema{}
		if err := json.Unmarshal([]byte(text), s); err != nil {
			return mergeType{}, fmt.Errorf("definition of %s: %w", n, err)
		}
		fresh[n] = s
	}
	made, err := schemaconv.ToSchemaFromOpenAPI(fresh, false)
	if err != nil {
		return mergeType{}, fmt.Errorf("merge rules of %s: %w", name, err)
	}
	known := map[string]bool{}
	for _, d := range made.Types {
		t.defs[d.Name] = d
		if fresh[d.Name] == nil { // the common untyped definitions
			names = append(names, d.Name)
		}
	}
	own := &smd.Schema{Types: make([]smd.TypeDef, 0, len(names))}
	for _, n := range names {
		if d, ok := t.defs[n]; ok && !known[n] {
			known[n] = true
			own.Types = append(own.Types, d)
		}
	}
	k := mergeType{ParseableType: typed.ParseableType{Schema: own, TypeRef: smd.TypeRef{NamedType: &name}}}
	rules := ruleset{schema: own, known: map[ruleID]*rule{}}
	k.rule = rules.rule(k.TypeRef, reflect.TypeOf(row.New()))
	t.kinds[row] = k
	return k, nil
}
