package resources

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// maxDataBytes bounds what a ConfigMap or a Secret holds.
const maxDataBytes = 1 << 20

const fixedByImmutable = "field is immutable when `immutable` is set"

var configMaps = Resource[corev1.ConfigMap]{
	Group: "", Version: "v1", Kind: "ConfigMap", Plural: "configmaps", WholeMeta: true, Short: []string{"cm"}, NoGeneration: true,
	List: listOf[corev1.ConfigMapList],
	Main: plainPart(validateConfigMap),
	Docs: map[string]string{
		"Data": corev1.ConfigMap{}.SwaggerDoc()["data"],
	},
	Columns: []Column[corev1.ConfigMap]{
		counted("Data", func(c *corev1.ConfigMap) int { return len(c.Data) + len(c.BinaryData) }),
		ageColumn[corev1.ConfigMap](),
	},
}

func validateConfigMap(c, old *corev1.ConfigMap) field.ErrorList {
	var f check.Faults
	data, binary := field.NewPath("data"), field.NewPath("binaryData")
	total := 0
	for k, v := range c.Data {
		f.Each(data.Key(k), k, validation.IsConfigMapKey(k))
		if _, both := c.BinaryData[k]; both {
			f.Invalid(data.Key(k), k, "duplicate of key present in binaryData")
		}
		total += len(v)
	}
	for k, v := range c.BinaryData {
		f.Each(binary.Key(k), k, validation.IsConfigMapKey(k))
		total += len(v)
	}
	if total > maxDataBytes {
		f.TooLong(field.NewPath(""), "", maxDataBytes)
	}
	if old != nil && valueOr(old.Immutable, false) {
		if !valueOr(c.Immutable, false) {
			f.Forbidden(field.NewPath("immutable"), fixedByImmutable)
		}
		if !equality.Semantic.DeepEqual(c.Data, old.Data) {
			f.Forbidden(data, fixedByImmutable)
		}
		if !equality.Semantic.DeepEqual(c.BinaryData, old.BinaryData) {
			f.Forbidden(binary, fixedByImmutable)
		}
	}
	return f.List()
}
