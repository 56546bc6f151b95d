package expr

import (
	"context"
	"strings"
	"testing"
)

// An expression of a policy is refused or evaluated within its budget.
func FuzzExpression(f *testing.F) {
	for _, s := range []string{
		"object.spec.replicas <= 5", "request.userInfo.username == 'alice' && 'dev' in request.userInfo.groups", "object.metadata.?labels[?'a'].orValue('') != ''",
		"variables.n + 1 > 2", "[1,2,3].map(x, [1,2,3].map(y, x*y)).size() == 3", "'aaaaaaaaaaaaaaaaaaaaa!'.matches('(a*)*b')", "authorizer.path('/x').check('get').allowed()",
		"namespaceObject.metadata.labels", "Object{spec: Object.spec{replicas: 3}}", "[JSONPatch{op: 'add', path: '/a', value: 1}]", "oldObject == null || params.max >= 1",
	} {
		f.Add(s)
	}
	content := map[string]any{"metadata": map[string]any{"name": "n", "labels": map[string]any{"a": "b"}}, "spec": map[string]any{"replicas": int64(3)}}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		for _, o := range []Options{{Policy: true, Params: true}, {Patch: true, Policy: true}, {New: true}} {
			s, err := NewScope(o)
			if err != nil {
				t.Fatal(err)
			}
			if o.Policy {
				s.Variable("n", "object.spec.replicas")
			}
			p := s.Compile(text, Any)
			if p.Err != nil {
				continue
			}
			run := s.Start(context.Background(), Input{Object: content, Params: map[string]any{"max": int64(1)}}, ConditionBudget)
			if _, err := run.Eval(p); err != nil && strings.Contains(err.Error(), "panic") {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
}
