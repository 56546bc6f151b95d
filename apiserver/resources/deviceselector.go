package resources

import (
	"fmt"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// selectorEnv is what a selector of devices can speak of: one device. It is made when the first
// selector is looked at, for it takes megabytes.
//
// Source: resource.k8s.io/v1 API reference, CELDeviceSelector.
var selectorEnv = sync.OnceValues(func() (*cel.Env, error) {
	since := version.MajorMinor(1, 0)
	name, domain := apicel.StringType, apicel.StringType
	of := func(n string, t *apicel.DeclType) *apicel.DeclField { return apicel.NewDeclField(n, t, true, nil, nil) }
	byDomain := func(value *apicel.DeclType) *apicel.DeclType {
		const most = resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice
		return apicel.NewMapType(domain, apicel.NewMapType(name, value, most), most)
	}
	device := apicel.NewObjectType("kubernetes.DRADevice", map[string]*apicel.DeclField{
		"driver":                   of("driver", apicel.StringType),
		"allowMultipleAllocations": of("allowMultipleAllocations", apicel.BoolType),
		"attributes":               of("attributes", byDomain(apicel.DynType)),
		"capacity":                 of("capacity", byDomain(apicel.QuantityDeclType)),
	})
	set, err := environment.MustBaseEnvSet(version.MajorMinor(1, 35)).Extend(environment.VersionedOptions{
		IntroducedVersion: since,
		EnvOptions: []cel.EnvOption{
			ext.Bindings(ext.BindingsVersion(0)), cel.Variable("device", device.CelType()),
			cel.Function("includes", cel.MemberOverload("dra_includes_dyn_dyn", []*cel.Type{cel.DynType, cel.DynType}, cel.BoolType)),
		},
		DeclTypes: []*apicel.DeclType{device},
	})
	if err != nil {
		return nil, err
	}
	return set.Env(environment.NewExpressions)
})

// validateSelector: an expression compiles and answers yes or no, as far as can be told without a device.
func validateSelector(f *check.Faults, expression string, p *field.Path) {
	env, err := selectorEnv()
	if err != nil {
		f.Internal(p, fmt.Errorf("CEL environment: %w", err))
		return
	}
	ast, issues := env.Compile(expression)
	if issues != nil {
		f.Invalid(p, expression, "compilation failed: "+issues.String())
		return
	}
	if t := ast.OutputType(); t != cel.BoolType && t != cel.AnyType && t != cel.DynType {
		f.Invalid(p, expression, fmt.Sprintf("must evaluate to %v or the unknown type, not %v", cel.BoolType, t))
	}
}
