// segment product.xml photo.ppm mask.pgm: OpenVINO alone reads the model, also a product.onnx.
#include <openvino/openvino.hpp>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
    if (argc != 4) throw std::runtime_error("usage: segment MODEL PHOTO.ppm MASK.pgm");
    std::ifstream photo(argv[2], std::ios::binary);
    std::string magic;
    size_t width = 0, height = 0, top = 0;
    photo >> magic >> width >> height >> top;
    photo.get();
    if (!photo || magic != "P6" || top != 255) throw std::runtime_error("the photo is no binary PPM of bytes");
    ov::Tensor image(ov::element::u8, {height, width, 3});
    photo.read(reinterpret_cast<char*>(image.data<uint8_t>()), image.get_byte_size());
    if (!photo) throw std::runtime_error("the photo is cut off");

    ov::Core core;
    auto model = core.compile_model(argv[1], "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();
    request.set_tensor("image", image);
    request.infer();
    ov::Tensor mask = request.get_tensor("mask");  // (height, width), training ids

    std::ofstream output(argv[3], std::ios::binary);
    output << "P5\n" << width << " " << height << "\n255\n";
    output.write(reinterpret_cast<const char*>(mask.data<uint8_t>()), mask.get_byte_size());
    return output ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
}
