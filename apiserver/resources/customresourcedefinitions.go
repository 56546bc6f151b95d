package resources

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	crdv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	crdschema "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	compatibility "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

type crd = crdv1.CustomResourceDefinition

// definitionVersions converts between the versions of definitions.
var definitionVersions = sync.OnceValue(func() *runtime.Scheme {
	s := runtime.NewScheme()
	install.Install(s)
	return s
})

// upgradeDefinition reads what upstream stores: v1beta1, in which what all versions have in common
// (their schema, mostly) stands beside them.
func upgradeDefinition(version string, text []byte) ([]byte, error) {
	if version != "v1beta1" {
		return text, nil
	}
	s := definitionVersions()
	var old crdv1beta1.CustomResourceDefinition
	if err := json.Unmarshal(text, &old); err != nil {
		return nil, err
	}
	s.Default(&old)
	var between apiextensions.CustomResourceDefinition
	if err := s.Convert(&old, &between, nil); err != nil {
		return nil, err
	}
	var now crd
	if err := s.Convert(&between, &now, nil); err != nil {
		return nil, err
	}
	return json.Marshal(&now)
}

// Defaults and rules of CustomResourceDefinitions are those of the library that
// owns the type: its schemas are checked for structure, CEL cost and defaults.
var customResourceDefinitions = Resource[crd]{
	Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Plural: "customresourcedefinitions", AnyFinalizer: true,
	Prefix: "apiextensions.k8s.io/customresourcedefinitions", Short: []string{"crd", "crds"}, Categories: []string{"api-extensions"},
	Scope: Cluster, NeedsVersion: true, List: listOf[crdv1.CustomResourceDefinitionList],
	Default: func(c *crd) {
		crdv1.SetObjectDefaults_CustomResourceDefinition(c)
		if v := c.Spec.Conversion; v != nil && v.Webhook != nil && v.Webhook.ClientConfig == nil && len(v.Webhook.ConversionReviewVersions) == 0 {
			v.Webhook = nil // which says nothing
		}
	},
	Upgrade: upgradeDefinition,
	Main: Part[crd]{
		Prepare: func(_ *Request, obj, old *crd) {
			if old == nil {
				obj.Status = crdv1.CustomResourceDefinitionStatus{}
			} else {
				obj.Status = *old.Status.DeepCopy()
			}
			// A second storage version is a fault that validation tells of; the first counts.
			i := slices.IndexFunc(obj.Spec.Versions, func(v crdv1.CustomResourceDefinitionVersion) bool { return v.Storage })
			if i >= 0 && !slices.Contains(obj.Status.StoredVersions, obj.Spec.Versions[i].Name) {
				obj.Status.StoredVersions = append(obj.Status.StoredVersions, obj.Spec.Versions[i].Name)
			}
		},
		Validate: func(rq *Request, obj, old *crd) field.ErrorList {
			return crdRules(rq, obj, old, crdvalidation.ValidateCustomResourceDefinition, crdvalidation.ValidateCustomResourceDefinitionUpdate)
		},
		Warnings: func(_ *Request, obj, old *crd) []string {
			known := map[string]bool{}
			if old != nil {
				for _, f := range oddFormats(old) {
					known[f] = true
				}
			}
			var out []string
			for _, f := range oddFormats(obj) {
				if !known[f] {
					out = append(out, fmt.Sprintf("unrecognized format %q", f))
				}
			}
			return out
		},
		Reset: []string{"status"},
	},
	Status: &Part[crd]{
		Prepare: keepSpec(func(c *crd) *crdv1.CustomResourceDefinitionSpec { return &c.Spec }),
		Validate: func(rq *Request, obj, old *crd) field.ErrorList {
			return crdRules(rq, obj, old, nil, func(_ context.Context, now, was *apiextensions.CustomResourceDefinition) field.ErrorList {
				return crdvalidation.ValidateUpdateCustomResourceDefinitionStatus(now, was)
			})
		},
		Reset: []string{"spec"},
	},
	// Instances go first: whoever serves them takes the finalizer off.
	Deleting: func(rq *Request, obj *crd) {
		if !slices.Contains(obj.Finalizers, crdv1.CustomResourceCleanupFinalizer) {
			obj.Finalizers = append(obj.Finalizers, crdv1.CustomResourceCleanupFinalizer)
		}
		apihelpers.SetCRDCondition(obj, crdv1.CustomResourceDefinitionCondition{
			Type: crdv1.Terminating, Status: crdv1.ConditionTrue, Reason: "InstanceDeletionPending",
			Message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
		})
	},
	Columns: []Column[crd]{createdAtColumn[crd]()},
}

// oddFormats are the formats in a definition's schemas that validation ignores.
func oddFormats(c *crd) (out []string) {
	version := compatibility.MajorMinor(1, 36)
	var walk func(s *crdv1.JSONSchemaProps)
	walk = func(s *crdv1.JSONSchemaProps) {
		if s == nil {
			return
		}
		if s.Format != "" {
			one := &spec.Schema{SchemaProps: spec.SchemaProps{Format: s.Format, Type: []string{s.Type}}}
			out = append(out, crdschema.GetUnrecognizedFormats(one, version)...)
		}
		for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
			p := s.Properties[name]
			walk(&p)
		}
		if s.Items != nil {
			walk(s.Items.Schema)
		}
		if s.AdditionalProperties != nil {
			walk(s.AdditionalProperties.Schema)
		}
	}
	for i := range c.Spec.Versions {
		if v := c.Spec.Versions[i].Schema; v != nil {
			walk(v.OpenAPIV3Schema)
		}
	}
	return out
}

// onlyCheckable takes selectable fields from versions whose schema is not structural. The library reports
// such a schema, and would then look for the fields in what it could not read (and crash, as of v0.36.6).
func onlyCheckable(spec *apiextensions.CustomResourceDefinitionSpec) {
	checkable := func(v *apiextensions.CustomResourceValidation) bool {
		if v == nil || v.OpenAPIV3Schema == nil {
			return true // it says so
		}
		_, err := structuralschema.NewStructural(v.OpenAPIV3Schema)
		return err == nil
	}
	if !checkable(spec.Validation) {
		spec.SelectableFields = nil
	}
	for i := range spec.Versions {
		if !checkable(spec.Versions[i].Schema) {
			spec.Versions[i].SelectableFields = nil
		}
	}
}

func crdRules(rq *Request, obj, old *crd,
	create func(context.Context, *apiextensions.CustomResourceDefinition) field.ErrorList,
	update func(context.Context, *apiextensions.CustomResourceDefinition, *apiextensions.CustomResourceDefinition) field.ErrorList,
) field.ErrorList {
	ctx := rq.Context
	if ctx == nil {
		ctx = context.Background()
	}
	convert := func(c *crd) (*apiextensions.CustomResourceDefinition, *field.Error) {
		out := &apiextensions.CustomResourceDefinition{}
		if err := crdv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(c.DeepCopy(), out, nil); err != nil {
			return nil, field.Invalid(field.NewPath("spec"), field.OmitValueType{}, err.Error())
		}
		return out, nil
	}
	now, bad := convert(obj)
	if bad != nil {
		return field.ErrorList{bad}
	}
	onlyCheckable(&now.Spec)
	if old == nil {
		// The library looks at metadata too, which rest has done for every kind.
		known := map[string]bool{}
		for _, e := range apivalidation.ValidateObjectMetaAccessor(obj, false, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata")) {
			known[e.Error()] = true
		}
		return slices.DeleteFunc(create(ctx, now), func(e *field.Error) bool { return known[e.Error()] })
	}
	was, bad := convert(old)
	if bad != nil {
		return field.ErrorList{bad}
	}
	return update(ctx, now, was)
}
