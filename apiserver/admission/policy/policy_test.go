package policy_test

import (
	"context"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/admission/expr"
	"github.com/keelson/keelson/apiserver/admission/policy"
	"github.com/keelson/keelson/apiserver/audit/audittest"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/patch"
	"github.com/keelson/keelson/apiserver/readertest"
	"github.com/keelson/keelson/apiserver/resources"
)

var table = policy.Expressions(resources.Table())

func row(t *testing.T, group, plural string) *resources.Row {
	for _, r := range table {
		if r.Group == group && r.Plural == plural {
			return r
		}
	}
	t.Fatalf("no row %s %s", group, plural)
	return nil
}

func kinds(gvk schema.GroupVersionKind) *resources.Row {
	for _, r := range table {
		if r.GVK() == gvk {
			return r
		}
	}
	return nil
}

type world struct {
	ctx      context.Context
	counts   *prometheus.Registry
	tree     *readertest.Tree
	chain    admission.Chain
	warnings []string
}

func newWorld(objs ...resources.Object) *world {
	w := &world{ctx: context.Background(), counts: prometheus.NewRegistry(), tree: readertest.New(objs...)}
	w.tree.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"team": "a"}}})
	m, v := policy.New(policy.Config{
		Read: w.tree, Rows: func() []*resources.Row { return table }, Authorizer: authz.Chain{authz.Masters{}}, Merge: patch.NewFields(kinds).Merge,
		Metrics: policy.NewMetrics(w.counts, expr.NewMetrics(w.counts)),
	})
	w.chain = admission.Chain{m, v}
	return w
}

func (w *world) admit(t *testing.T, r *resources.Row, obj, old resources.Object, user *authn.User) error {
	a := &admission.Attributes{
		Operation: admission.Create, Row: r, User: user, Object: obj, Namespace: obj.GetNamespace(), Name: obj.GetName(), Options: &metav1.CreateOptions{},
		Request: &resources.Request{Read: w.tree, Warn: func(s string) { w.warnings = append(w.warnings, s) }},
	}
	if old != nil {
		a.Operation, a.Old = admission.Update, old
	}
	if err := w.chain.Mutate(w.ctx, a); err != nil {
		return err
	}
	_, err := w.chain.Validate(w.ctx, a)
	return err
}

func deployment(replicas int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "d"},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Template: corev1.PodTemplateSpec{
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "A", Value: "1"}}}}},
		}},
	}
}

func onDeployments() *admissionv1.MatchResources {
	return &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: []admissionv1.OperationType{"CREATE", "UPDATE"},
		Rule:       admissionv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
	}}}}
}

func TestValidatingPolicies(t *testing.T) {
	jane, root := &authn.User{Name: "jane"}, &authn.User{Name: "root", Groups: []string{authn.GroupMasters}}
	limit := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "limit", Labels: map[string]string{"limits": "yes"}}, Data: map[string]string{"max": "3"}}
	byName := &admissionv1.ParamRef{Name: "limit", ParameterNotFoundAction: ptr.To(admissionv1.DenyAction)}
	type spec = admissionv1.ValidatingAdmissionPolicySpec
	for _, c := range []struct {
		name   string
		spec   spec
		ref    *admissionv1.ParamRef
		action admissionv1.ValidationAction
		user   *authn.User
		want   string // the end of the message; "" when the request is let through
		code   int32
		warns  bool
	}{
		{name: "holds", spec: spec{Validations: []admissionv1.Validation{{Expression: "object.spec.replicas > 1 && object.kind == 'Deployment' && namespaceObject.metadata.labels.team == 'a'"}}}},
		{name: "does not hold", spec: spec{Validations: []admissionv1.Validation{{Expression: " object.spec.replicas > 5"}}},
			want: "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: object.spec.replicas > 5", code: 422},
		{name: "says why, with a reason", spec: spec{Validations: []admissionv1.Validation{{Expression: "object.spec.replicas > 5",
			MessageExpression: "'got ' + string(object.spec.replicas)", Message: "other", Reason: ptr.To(metav1.StatusReasonForbidden)}}},
			want: "denied request: got 4", code: 403},
		{name: "falls back to the message", spec: spec{Validations: []admissionv1.Validation{{Expression: "object.spec.replicas > 5", MessageExpression: "'got ' + object.spec.replicas", Message: "too few"}}},
			want: "denied request: too few", code: 422},
		{name: "variables build on each other", spec: spec{
			Variables:   []admissionv1.Variable{{Name: "n", Expression: "object.spec.replicas"}, {Name: "odd", Expression: "variables.n % 2 == 1"}},
			Validations: []admissionv1.Validation{{Expression: "variables.odd", Message: "even"}},
		}, want: "denied request: even", code: 422},
		{name: "parameter by name", spec: spec{ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
			Validations: []admissionv1.Validation{{Expression: "object.spec.replicas <= int(params.data.max)", Message: "too many"}}},
			ref: byName, want: "denied request: too many", code: 422},
		{name: "parameter by selector", spec: spec{ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
			Validations: []admissionv1.Validation{{Expression: "params.kind == 'ConfigMap' && object.spec.replicas <= int(params.data.max)", Message: "too many"}}},
			ref: &admissionv1.ParamRef{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"limits": "yes"}}}, want: "denied request: too many", code: 422},
		{name: "no parameter, refused", spec: spec{ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
			Validations: []admissionv1.Validation{{Expression: "true"}}},
			ref:  &admissionv1.ParamRef{Name: "gone", ParameterNotFoundAction: ptr.To(admissionv1.DenyAction)},
			want: "denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction", code: 422},
		{name: "no parameter, allowed", spec: spec{ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
			Validations: []admissionv1.Validation{{Expression: "false"}}},
			ref: &admissionv1.ParamRef{Name: "gone", ParameterNotFoundAction: ptr.To(admissionv1.AllowAction)}},
		{name: "an error refuses", spec: spec{Validations: []admissionv1.Validation{{Expression: "object.spec.nothing > 1"}}},
			want: "expression 'object.spec.nothing > 1' resulted in error: no such key: nothing", code: 422},
		{name: "an error is ignored", spec: spec{FailurePolicy: ptr.To(admissionv1.Ignore), Validations: []admissionv1.Validation{{Expression: "object.spec.nothing > 1"}}}},
		{name: "only warns", spec: spec{Validations: []admissionv1.Validation{{Expression: "false", Message: "no"}}}, action: admissionv1.Warn, warns: true},
		{name: "condition does not hold", spec: spec{MatchConditions: []admissionv1.MatchCondition{{Name: "c", Expression: "request.userInfo.username != 'jane'"}},
			Validations: []admissionv1.Validation{{Expression: "false"}}}},
		{name: "the caller may", user: root, spec: spec{Validations: []admissionv1.Validation{{Expression: "authorizer.group('apps').resource('deployments').check('delete').allowed()"}}}},
		{name: "the caller may not", spec: spec{Validations: []admissionv1.Validation{{Expression: "authorizer.requestResource.check('delete').allowed()", Message: "may not"}}},
			want: "denied request: may not", code: 422},
		{name: "an annotation that fails", spec: spec{AuditAnnotations: []admissionv1.AuditAnnotation{{Key: "k", ValueExpression: "string(object.spec.nothing)"}}},
			want: "no such key: nothing", code: 422},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.action == "" {
				c.action = admissionv1.Deny
			}
			if c.user == nil {
				c.user = jane
			}
			c.spec.MatchConstraints = onDeployments()
			w := newWorld(limit, &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: c.spec},
				&admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
					PolicyName: "p", ParamRef: c.ref, ValidationActions: []admissionv1.ValidationAction{c.action},
				}})
			err := w.admit(t, row(t, "apps", "deployments"), deployment(4), nil, c.user)
			if c.want == "" && err != nil {
				t.Fatal(err)
			}
			if c.want != "" {
				st, ok := err.(apierrors.APIStatus)
				if !ok || !strings.HasSuffix(err.Error(), c.want) || st.Status().Code != c.code {
					t.Fatalf("got %v (%T), want code %d and %q", err, err, c.code, c.want)
				}
			}
			if c.warns != (len(w.warnings) == 1) {
				t.Errorf("warnings %q", w.warnings)
			}
			if err := w.admit(t, row(t, "apps", "replicasets"), &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r"}}, nil, c.user); err != nil {
				t.Errorf("another resource is refused: %v", err)
			}
		})
	}
}

// What policies find is counted under upstream's names, and told to the audit event.
func TestFindingsAreTold(t *testing.T) {
	fails := []admissionv1.Validation{{Expression: "true"}, {Expression: "object.spec.replicas > 5", Message: "too few"}, {Expression: "object.spec.nothing > 1"}}
	w := newWorld(
		&admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: onDeployments(), FailurePolicy: ptr.To(admissionv1.Ignore), Validations: fails,
			MatchConditions:  []admissionv1.MatchCondition{{Name: "c", Expression: "object.spec.replicas < 7"}},
			AuditAnnotations: []admissionv1.AuditAnnotation{{Key: "n", ValueExpression: "'n = ' + string(object.spec.replicas)"}, {Key: "none", ValueExpression: "null"}},
		}},
		&admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: "p", ValidationActions: []admissionv1.ValidationAction{admissionv1.Audit, admissionv1.Warn},
		}},
		&admissionv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: admissionv1.MutatingAdmissionPolicySpec{
			MatchConstraints: onDeployments(), FailurePolicy: ptr.To(admissionv1.Ignore), Mutations: []admissionv1.Mutation{
				{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: `[JSONPatch{op: "add", path: "/metadata/labels", value: {"a": "b"}}]`}},
				{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: `[JSONPatch{op: "remove", path: "/nothing"}]`}},
			},
		}},
		&admissionv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "mb"}, Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: "m"}},
	)
	ctx, end := audittest.Begin(t, "Metadata")
	w.ctx = ctx
	for _, n := range []int32{4, 9} {
		if err := w.admit(t, row(t, "apps", "deployments"), deployment(n), nil, &authn.User{Name: "jane"}); err != nil {
			t.Fatal(err)
		}
	}
	notes := end()
	if got := notes["validation.policy.admission.k8s.io/validation_failure"]; got != `[{"message":"too few","policy":"p","binding":"b","expressionIndex":1,"validationActions":["Audit","Warn"]}]` {
		t.Errorf("the failure is told as %s", got)
	}
	if _, none := notes["p/none"]; notes["p/n"] != "n = 4" || none {
		t.Errorf("annotations %q", notes)
	}
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(w.counts, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`apiserver_validating_admission_policy_check_total{enforcement_action="audit",error_type="invalid_error",policy="p",policy_binding="b"} 1`,
		`apiserver_validating_admission_policy_check_total{enforcement_action="warn",error_type="invalid_error",policy="p",policy_binding="b"} 1`,
		`apiserver_validating_admission_policy_check_total{enforcement_action="allow",error_type="invalid_error",policy="p",policy_binding="b"} 1`,
		`apiserver_mutating_admission_policy_check_total{error_type="no_error",policy="m",policy_binding="mb"} 2`,
		`apiserver_mutating_admission_policy_check_total{error_type="invalid_error",policy="m",policy_binding="mb"} 2`,
		`apiserver_admission_match_condition_evaluation_seconds_count{kind="policy",name="p",operation="CREATE",type="validate"} 2`,
		`apiserver_admission_match_condition_exclusions_total{kind="policy",name="p",operation="CREATE",type="validate"} 1`,
	} {
		if !strings.Contains(rec.Body.String(), want+"\n") {
			t.Errorf("not shown: %s", want)
		}
	}
}

func TestMutatingPolicies(t *testing.T) {
	apply := func(text string) admissionv1.Mutation {
		return admissionv1.Mutation{PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{Expression: text}}
	}
	json := func(text string) admissionv1.Mutation {
		return admissionv1.Mutation{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: text}}
	}
	for _, c := range []struct {
		name      string
		mutations []admissionv1.Mutation
		check     func(*appsv1.Deployment) bool
		want      string
	}{
		{"sets a number", []admissionv1.Mutation{apply("Object{spec: Object.spec{replicas: 1337}}")}, func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 1337 }, ""},
		{"adds to maps", []admissionv1.Mutation{apply(`Object{metadata: Object.metadata{annotations: {"by": "policy"}}}`), apply(`Object{metadata: Object.metadata{annotations: {"n": string(object.spec.replicas)}}}`)},
			func(d *appsv1.Deployment) bool { return d.Annotations["by"] == "policy" && d.Annotations["n"] == "4" }, ""},
		{"merges lists by key", []admissionv1.Mutation{apply(`Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [
			Object.spec.template.spec.containers{name: "c", image: "other"}]}}}}`)},
			func(d *appsv1.Deployment) bool {
				c := d.Spec.Template.Spec.Containers
				return len(c) == 1 && c[0].Image == "other" && len(c[0].Env) == 1
			}, ""},
		{"operations", []admissionv1.Mutation{json(`[JSONPatch{op: "test", path: "/spec/replicas", value: 4}, JSONPatch{op: "add", path: "/metadata/labels", value: {"a": "b"}}]`)},
			func(d *appsv1.Deployment) bool { return d.Labels["a"] == "b" && d.Kind == "" }, ""},
		{"a test that fails changes nothing", []admissionv1.Mutation{json(`[JSONPatch{op: "test", path: "/spec/replicas", value: 5}, JSONPatch{op: "add", path: "/metadata/labels", value: {"a": "b"}}]`)},
			func(d *appsv1.Deployment) bool { return d.Labels == nil }, ""},
		{"an atomic list is refused", []admissionv1.Mutation{apply(`Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [
			Object.spec.template.spec.containers{name: "c", command: ["a"]}]}}}}`)}, nil, "may not mutate atomic arrays, maps or structs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(&admissionv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: admissionv1.MutatingAdmissionPolicySpec{
				MatchConstraints: onDeployments(), Mutations: c.mutations, ReinvocationPolicy: admissionv1.IfNeededReinvocationPolicy,
			}}, &admissionv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: "p"}})
			d := deployment(4)
			err := w.admit(t, row(t, "apps", "deployments"), d, nil, &authn.User{Name: "jane"})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !c.check(d) {
				t.Errorf("got %+v", d)
			}
		})
	}
}

// What does not compile is reported among the other faults, in upstream's order.
func TestExpressionsAreCompiledWhenStored(t *testing.T) {
	rules := onDeployments()
	ignore := admissionv1.Ignore
	bad := admissionv1.FailurePolicyType("Bad")
	url := "https://example.com/x"
	effects := admissionv1.SideEffectClassNone
	hook := func(conditions ...admissionv1.MatchCondition) *admissionv1.ValidatingWebhookConfiguration {
		return &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "a.b.c", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}, SideEffects: &effects, MatchConditions: conditions,
		}}}
	}
	apply := func(text string) *admissionv1.ApplyConfiguration {
		return &admissionv1.ApplyConfiguration{Expression: text}
	}
	broken := hook(admissionv1.MatchCondition{Name: "x", Expression: "... [] bad expression"})
	for _, c := range []struct {
		name     string
		row      string
		obj, old resources.Object
		want     []string
	}{
		{"a webhook's condition, before its versions", "validatingwebhookconfigurations", broken, nil,
			[]string{"webhooks[0].matchConditions[0].expression", "webhooks[0].admissionReviewVersions"}},
		{"what is stored already", "validatingwebhookconfigurations", broken.DeepCopy(), broken, []string{"webhooks[0].admissionReviewVersions"}},
		{"no text is one fault", "validatingwebhookconfigurations", hook(admissionv1.MatchCondition{Name: "x"}), nil,
			[]string{"webhooks[0].matchConditions[0].expression", "webhooks[0].admissionReviewVersions"}},
		{"between the fields of a policy", "validatingadmissionpolicies", &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: rules, FailurePolicy: &bad, Variables: []admissionv1.Variable{{Name: "a b", Expression: "x"}},
			Validations:      []admissionv1.Validation{{Expression: "1 + 1", MessageExpression: "2", Message: "a\nb"}, {}},
			AuditAnnotations: []admissionv1.AuditAnnotation{{Key: "", ValueExpression: "1"}},
		}}, nil, []string{"spec.failurePolicy", "spec.variables[0].name", "spec.variables[0].expression", "spec.validations[0].expression", "spec.validations[0].messageExpression",
			"spec.validations[0].message", "spec.validations[1].expression", "spec.auditAnnotations[0].key", "spec.auditAnnotations[0].key", "spec.auditAnnotations[0].valueExpression"}},
		{"of two patches the one that is asked for comes first", "mutatingadmissionpolicies", &admissionv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: admissionv1.MutatingAdmissionPolicySpec{
			MatchConstraints: rules, FailurePolicy: &ignore, Mutations: []admissionv1.Mutation{
				{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: "1"}, ApplyConfiguration: apply("x")},
				{PatchType: admissionv1.PatchTypeApplyConfiguration, JSONPatch: &admissionv1.JSONPatch{Expression: "1"}, ApplyConfiguration: apply("y")},
			},
		}}, nil, []string{"spec.mutations[0].jsonPatch.expression", "spec.mutations[0].applyConfiguration", "spec.mutations[1].applyConfiguration.expression", "spec.mutations[1].jsonPatch", "spec.reinvocationPolicy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			faults := row(t, "admissionregistration.k8s.io", c.row).Main.Validate(&resources.Request{}, c.obj, c.old)
			for _, f := range faults {
				got = append(got, f.Field)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("faults\n %s, want\n %s", strings.Join(got, "\n "), strings.Join(c.want, "\n "))
			}
		})
	}
}

func TestTypeCheck(t *testing.T) {
	object := spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}, Properties: map[string]spec.Schema{
		"spec": {SchemaProps: spec.SchemaProps{AllOf: []spec.Schema{*spec.RefSchema("#/components/schemas/Spec")}}},
	}}}
	named := &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}, Properties: map[string]spec.Schema{
		"replicas": {SchemaProps: spec.SchemaProps{Type: []string{"integer"}, Format: "int32"}}, "again": *spec.RefSchema("#/components/schemas/Spec"),
	}}}
	schemaOf := func(*resources.Row) *spec.Schema {
		return policy.Inline(&object, func(string) *spec.Schema { return named })
	}
	p := &admissionv1.ValidatingAdmissionPolicy{Spec: admissionv1.ValidatingAdmissionPolicySpec{MatchConstraints: onDeployments(), Validations: []admissionv1.Validation{
		{Expression: "object.spec.replicas > 1"},
		{Expression: "object.spec.replicas > '1'", MessageExpression: "'got ' + object.spec.replicas"},
		{Expression: "object.spec.other > 1"},
	}}}
	got, err := policy.Check(p, table, schemaOf)
	if err != nil || len(got) != 3 {
		t.Fatalf("got %v, %v", got, err)
	}
	for i, want := range [][2]string{
		{"spec.validations[1].expression", "found no matching overload for '_>_' applied to '(int, string)'"},
		{"spec.validations[1].messageExpression", "found no matching overload for '_+_' applied to '(string, int)'"},
		{"spec.validations[2].expression", "undefined field 'other'"},
	} {
		if got[i].FieldRef != want[0] || !strings.Contains(got[i].Warning, want[1]) || !strings.HasPrefix(got[i].Warning, "apps/v1, Kind=Deployment: ") {
			t.Errorf("got %v, want %v", got[i], want)
		}
	}
}
